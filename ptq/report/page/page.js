// Only comfort: without it everything is there, unsorted and unfiltered.
"use strict";
for (const box of document.querySelectorAll("[data-needs-script]")) box.hidden = false;
const body = document.querySelector("#layers tbody");
document.querySelector("#filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
});
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/[^\d.+-]/g, ""));
  return Number.isNaN(number) || !/^[\d.+-]/.test(text) ? text : number;
};
document.querySelectorAll("#layers thead th").forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  head.replaceChildren(button);
  let turn = 1;
  button.addEventListener("click", () => {
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      return turn * (typeof x === typeof y ? (x > y) - (x < y) : typeof x === "number" ? -1 : 1);
    });
    body.append(...rows);
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
    turn = -turn;
  });
});
