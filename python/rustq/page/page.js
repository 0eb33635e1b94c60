"use strict";
const table = document.getElementById("table");
if (table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  let layers = [...body.rows].map((row) => {
    const text = [...row.cells].filter((cell) => !cell.classList.contains("number")).map((cell) => cell.textContent);
    return { row, button: row.querySelector(".open"), detail: null, text: text.join(" ").toLowerCase() };
  });
  // The charts of a layer are moved into a row of their own below it when it is opened first.
  const opened = ({ row, button }) => {
    const detail = document.createElement("tr"), cell = detail.insertCell();
    detail.className = "detail";
    cell.colSpan = heads.length;
    cell.append(document.getElementById(button.getAttribute("aria-controls")));
    row.after(detail);
    return detail;
  };
  const fold = ({ row, button, detail }) => {
    if (detail) detail.hidden = row.hidden || button.getAttribute("aria-expanded") !== "true";
  };
  layers.filter((layer) => layer.button).forEach((layer) => layer.button.addEventListener("click", () => {
    const open = layer.button.getAttribute("aria-expanded") === "true";
    layer.button.setAttribute("aria-expanded", String(!open));
    layer.detail ??= opened(layer);
    fold(layer);
  }));

  // Many rows take long to lay out: the first of those that match are shown, and the rest when asked for.
  const search = document.getElementById("search"), shown = document.getElementById("shown");
  const all = document.getElementById("all");
  let most = 100;
  const show = () => {
    const wanted = search.value.trim().toLowerCase();
    let found = 0;
    for (const layer of layers) {
      found += layer.text.includes(wanted);
      layer.row.hidden = !layer.text.includes(wanted) || found > most;
      fold(layer);
    }
    shown.textContent = wanted ? `${found} of ${layers.length} layers` : "";
    all.hidden = found <= most;
    all.textContent = `Show all ${found} layers`;
  };
  search.addEventListener("input", show);
  all.addEventListener("click", () => { most = Infinity; show(); });
  show();

  const key = (layer, column) => {
    const cell = layer.row.cells[column], text = cell.dataset.key ?? cell.textContent;
    return text === "" || isNaN(text) ? text.toLowerCase() : Number(text);
  };
  const inWords = new Intl.Collator(undefined, { numeric: true });
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : inWords.compare(String(a), String(b));
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = layers.map((layer) => ({ layer, key: key(layer, column) }));
    // What was not measured comes last either way.
    keyed.sort((a, b) => (a.key === "") - (b.key === "") || (down ? -1 : 1) * order(a.key, b.key));
    layers = keyed.map(({ layer }) => layer);
    body.append(...layers.flatMap(({ row, detail }) => (detail ? [row, detail] : [row])));
    show();
  }));
}
