"use strict";
for (const list of document.querySelectorAll("[data-list]")) {
  const wanted = {};
  const items = [...list.querySelectorAll("[data-item]")];
  const buttons = [...list.querySelectorAll("button[data-key]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const { key, value } = button.dataset;
      wanted[key] = value;
      for (const other of buttons) {
        if (other.dataset.key === key) other.setAttribute("aria-pressed", String(other === button));
      }
      let shown = 0;
      for (const item of items) {
        item.hidden = !Object.entries(wanted).every(
          ([name, choice]) => !choice || (item.dataset[name] || "").split(" ").includes(choice));
        if (!item.hidden) shown += 1;
      }
      list.querySelector("[data-shown]").textContent = shown;
    });
  }
}

// A click on a heading sorts by that column: numbers by size, the rest as text, empty cells last.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
      const [p, q] = [Number(x), Number(y)];
      return way * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
    };
    body.append(...[...body.rows].sort(compare));
  }));
}
