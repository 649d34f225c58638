/** The page "Try it": its cells stand in it. */

import { start } from "./cells.js";

const cells = [...document.querySelectorAll(".cell")].map((place) => ({
  place, area: place.querySelector("textarea"), output: place.querySelector("output"),
  run: place.querySelector(".run"), reset: place.querySelector(".reset"),
}));
const done = new Set(); // puzzles, also those that were solved before Python was restarted
start(cells, {
  status: document.getElementById("python-status"),
  restart: document.getElementById("restart"),
  told({ solved }) {
    for (const number of solved) done.add(number);
    for (const { place } of cells) place.classList.toggle("solved", done.has(Number(place.dataset.puzzle)));
    document.getElementById("solved").textContent = `${done.size} of 5 puzzles solved`;
  },
});
