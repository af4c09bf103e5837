// Elements of the page. They are made of text and of other elements, never of HTML: what a model or
// a client wrote stays text.

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/**
 * A new element. `properties` are those of the object (className, textContent …), `children`
 * elements or text.
 */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/**
 * Brings the rows of a table's body in line with `items`. A key's row stays the same element, so
 * that focus and selection outlive the next look at the server.
 *
 * @template T
 * @param {HTMLElement} body
 * @param {T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => HTMLElement} make an empty row
 * @param {(row: HTMLElement, item: T) => void} fill brings a row up to date
 */
export function keepRows(body, items, keyOf, make, fill) {
  const before = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const focused = document.activeElement;
  const rows = items.map((item) => {
    const key = keyOf(item);
    const row = before.get(key) ?? make(item);
    row.dataset.key = key;
    fill(row, item);
    return row;
  });
  if (rows.length !== body.children.length || rows.some((row, at) => row !== body.children[at])) {
    body.replaceChildren(...rows);
    if (focused && body.contains(focused)) focused.focus({ preventScroll: true });
  }
  body.closest("table").hidden = !items.length;
}

/** Sets text where it differs: what is the same keeps its selection. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}
