/* No module: browsers load none of them from a disk. */
if (location.protocol === "file:") {
  document.getElementById("needs-server").hidden = false;
  document.documentElement.classList.add("from-disk");
}
