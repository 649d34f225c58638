/** Python in a Web Worker, so that the page stays responsive. The page sends cells; what they print comes back. */

import { PYODIDE } from "./pyodide.js";

const chapter = self.location.search === "?chapter"; // of the notebooks, which draw
let number; // of the cell that runs
const tell = (kind, text) => postMessage({ number, kind, text });
const bytes = (name) => fetch(new URL(name, import.meta.url)).then((answer) => answer.arrayBuffer());

async function start() {
  const [{ loadPyodide }, modules, notebooks] = await Promise.all([
    import(`${PYODIDE}pyodide.mjs`), bytes("python.zip"), chapter ? bytes("notebooks.zip") : null]);
  const python = await loadPyodide({ indexURL: PYODIDE });
  const packages = ["numpy", "threadpoolctl", ...(chapter ? ["matplotlib"] : [])];
  await python.loadPackage(packages, { messageCallback() {} });
  python.unpackArchive(modules, "zip", { extractDir: python.runPython("import site; site.getsitepackages()[0]") });
  const cells = python.pyimport("cells");
  if (notebooks) {
    python.unpackArchive(notebooks, "zip", { extractDir: "/home/pyodide" });
    cells.open_notebooks("/home/pyodide");
  }
  return cells;
}
const started = start();
started.then(() => postMessage({ started: true }), (error) => postMessage({ failed: String(error.message ?? error) }));

onmessage = async ({ data }) => {
  const cells = await started;
  number = data.number;
  try {
    const good = cells.run(data.code, tell);
    postMessage({ number, done: true, good, solved: cells.solved().toJs() });
  } catch (error) { // no Python error: those are shown; the runtime itself has ended
    postMessage({ number, ended: String(error.message ?? error).split("\n")[0] });
  }
};
