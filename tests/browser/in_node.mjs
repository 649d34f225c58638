/** Pyodide in Node: `node in_node.mjs FOLDER PROGRAM [NAME=VALUE …]` runs a Python file; FOLDER is tests/browser/pyodide.py's. */

import { readFileSync, readdirSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, program, ...names] = process.argv.slice(2);
process.on("uncaughtException", (error) => { // Node would print the line, of a megabyte, that raised it
  console.error(String(error?.message ?? error));
  process.exit(1);
});
const { loadPyodide } = await import(pathToFileURL(`${folder}/pyodide/pyodide.mjs`));
const python = await loadPyodide({ indexURL: `${folder}/pyodide/`, env: Object.fromEntries(names.map((one) => one.split(/=(.*)/s))) });
await python.loadPackage(["numpy", "threadpoolctl"], { messageCallback() {} });
const packages = python.runPython("import site; site.getsitepackages()[0]");
for (const wheel of readdirSync(`${folder}/wheels`))
  python.unpackArchive(new Uint8Array(readFileSync(`${folder}/wheels/${wheel}`)), "wheel", { extractDir: packages });
python.FS.mkdirTree("/project");
python.FS.mount(python.FS.filesystems.NODEFS, { root: process.cwd() }, "/project");
python.runPython("import sys; sys.path.append('/project/notebooks/reference/try/modules')"); // a package tokenizers
python.runPython(readFileSync(program, "utf8"));
