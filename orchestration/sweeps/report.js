// A click on a heading sorts the table by its column, another the other way round; what has no value stays last.
const table = document.querySelector("table");
const headings = table ? [...table.querySelectorAll("th")] : [];

function sortBy(column) {
  const heading = headings[column];
  const numeric = heading.classList.contains("number");
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (key(a) === "") - (key(b) === "") || sign * compare(key(a), key(b)));
  table.tBodies[0].append(...rows);
  headings.forEach((other) => other.setAttribute("aria-sort", "none"));
  heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
}

headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => sortBy(column)));
