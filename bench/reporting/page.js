// The page's own behaviour: choose a table and its findings, sort and search its rows, read a figure by pointing.
const get = (id) => document.getElementById(id);
const board = get("board"), figures = get("figures"), tip = get("tip");
const WHERE = 2; // the column that says which table a row is of, by its number
const NEAR = 18; // pixels from a mark at which it is meant
// What Vega draws for a row says so in its label, which starts with the method's name.
const POINT = "[aria-roledescription=point]", MARK = "[aria-roledescription][aria-label]";

async function draw(number) {
  const packed = Uint8Array.from(atob(get(`figure${number}`).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const text = await new Response(stream).text();
  if (board.value !== number) return; // another one was chosen meanwhile
  figures.innerHTML = text;
}

function light(label) {
  const method = label?.split(" ")[0];
  figures.classList.toggle("focus", method !== undefined);
  for (const mark of figures.querySelectorAll(MARK)) {
    mark.classList.toggle("on", mark.ariaLabel.split(" ")[0] === method);
  }
  for (const row of document.querySelectorAll("tr[data-method]")) {
    row.classList.toggle("on", row.dataset.method === method);
  }
}

function point(event) {
  let best = null, least = NEAR ** 2;
  for (const mark of event.target.closest("svg")?.querySelectorAll(POINT) ?? []) {
    const box = mark.getBoundingClientRect();
    const x = box.x + box.width / 2, y = box.y + box.height / 2;
    const far = (x - event.clientX) ** 2 + (y - event.clientY) ** 2;
    if (far < least) [best, least] = [mark, far];
  }
  tip.hidden = !best;
  if (best) {
    tip.textContent = best.ariaLabel;
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, right))}px`;
    tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 12)}px`;
  }
  light((best ?? event.target).closest(MARK)?.ariaLabel);
}

function leave() {
  tip.hidden = true;
  light();
}

function name(number, kind) {
  const option = board.options[number];
  return kind === "display" ? option.innerHTML : option.text;
}

if (board) {
  const table = new DataTable("#rows", {
    autoWidth: false,
    order: [],
    pageLength: 50,
    lengthMenu: [25, 50, 100, 1000],
    columnDefs: [
      { className: "word", targets: [0, 1, WHERE] },
      // Text from a record: DataTables would take it for HTML in a cell, so it is escaped again.
      { targets: WHERE, type: "string", render: (number, kind) => name(number, kind) },
    ],
    layout: { topStart: "search", topEnd: "pageLength", bottomStart: "info", bottomEnd: "paging" },
    language: { info: "_START_ to _END_ of _TOTAL_ rows", infoEmpty: "no rows", infoFiltered: "",
      search: "search rows", lengthMenu: "_MENU_ at a time" },
  });
  const choose = () => {
    const number = board.value;
    leave();
    figures.textContent = "";
    for (const said of document.querySelectorAll(".findings")) {
      said.hidden = number !== "" && said.dataset.b !== number;
    }
    table.column(WHERE).visible(number === "", false);
    table.search.fixed("board", number === "" ? null : (_, data, row) =>
      table.row(row).node().dataset.b === number);
    table.draw();
    if (number !== "") draw(number);
  };
  board.addEventListener("change", choose);
  choose();
  for (const event of ["pointermove", "pointerdown"]) figures.addEventListener(event, point);
  // A finger leaves when it is lifted; what it pointed at stays until the next touch or scroll.
  const left = (event) => event.pointerType === "mouse" && leave();
  figures.addEventListener("pointerleave", left);
  document.addEventListener("pointerdown", (event) => figures.contains(event.target) || leave());
  document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  get("rows").addEventListener("pointerover", (event) =>
    light(event.target.closest("tr[data-method]")?.dataset.method));
  get("rows").addEventListener("pointerleave", left);
}
