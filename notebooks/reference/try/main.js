/** The page "Try it": its cells stand in it. */

import { start } from "./cells.js";

const cells = [...document.querySelectorAll(".cell")].map((place) => ({
  place, area: place.querySelector("textarea"), output: place.querySelector("output"),
  run: place.querySelector(".run"), reset: place.querySelector(".reset"),
}));
start(cells, {
  status: document.getElementById("python-status"),
  restart: document.getElementById("restart"),
  told({ solved }) {
    for (const { place } of cells) place.classList.toggle("solved", solved.includes(Number(place.dataset.puzzle)));
    document.getElementById("solved").textContent = `${solved.length} of 5 puzzles solved`;
  },
});
