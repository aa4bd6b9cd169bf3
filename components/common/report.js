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
