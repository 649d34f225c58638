/** Where Pyodide is: the version that refdiff is tested with. */
export const PYODIDE = "https://cdn.jsdelivr.net/pyodide/v0.27.7/full/";
