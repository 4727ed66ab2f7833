// What stands around a conversation: the drawer, the buttons of the bar, following the end of the
// text, and reading answers out to screen readers.

import { announce, icon } from "./dom.js";
import { textOf } from "./tree.js";

const NARROW = "(max-width: 60rem)";

/** Joins the fixed buttons of the page to `actions`. Gives the drawer. */
export function wireShell(actions) {
  const on = (id, run) => document.getElementById(id).addEventListener("click", run);
  const drawer = new Drawer();
  on("new", () => (drawer.closeDrawer(), actions.create()));
  on("open-settings", actions.settings);
  on("open-help", actions.help);
  on("export-all", actions.all);
  const menu = document.getElementById("export");
  const choose = (run) => () => {
    menu.open = false;
    run();
  };
  on("export-markdown", choose(actions.markdown));
  on("export-json", choose(actions.json));
  document.addEventListener("click", (event) => menu.contains(event.target) || (menu.open = false));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.preventDefault();
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  const file = document.getElementById("import-file");
  on("import", () => file.click());
  file.addEventListener("change", () => {
    actions.import([...file.files]);
    file.value = "";
  });
  document.getElementById("runs-link").hidden = !actions.runs;
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
  return drawer;
}

/** The list of conversations: beside the page where there is room, over it where there is not. */
class Drawer {
  constructor() {
    this.sidebar = document.getElementById("sidebar");
    this.main = document.querySelector("main");
    this.button = document.getElementById("open-sidebar");
    this.narrow = matchMedia(NARROW);
    this.button.addEventListener("click", () => this.toggle());
    document.getElementById("backdrop").addEventListener("click", () => this.show(false));
    document.getElementById("conversations").addEventListener("click", (event) => {
      if (event.target.closest("a")) this.closeDrawer();
    });
    this.narrow.addEventListener("change", () => this.show(!this.narrow.matches));
    this.show(!this.narrow.matches && localStorage.getItem("nanochat.sidebar") !== "closed");
  }

  get open() {
    return !document.body.classList.contains("alone");
  }

  show(open) {
    document.body.classList.toggle("alone", !open);
    this.sidebar.inert = !open;
    this.button.setAttribute("aria-expanded", String(open));
    const over = open && this.narrow.matches;
    this.main.inert = over;
    if (over) document.getElementById("new").focus();
    if (!this.narrow.matches) localStorage.setItem("nanochat.sidebar", open ? "open" : "closed");
  }

  toggle() {
    const over = this.open && this.narrow.matches;
    this.show(!this.open);
    if (over) this.button.focus();
  }

  /** Closes it if it covers the page; says whether it did. */
  closeDrawer() {
    if (!this.narrow.matches || !this.open) return false;
    this.show(false);
    this.button.focus();
    return true;
  }
}

/** Keeps the end of a growing text in sight, until the reader scrolls away from it. */
export class Follow {
  constructor(button) {
    this.button = button;
    button.replaceChildren(icon("down"), "Latest");
    button.addEventListener("click", () => this.toEnd());
    this.following = true;
    addEventListener("scroll", () => this.look(), { passive: true });
    addEventListener("resize", () => this.keep());
  }

  get page() {
    return document.scrollingElement;
  }

  /** Where the page stands when the newest text is in sight. */
  get end() {
    const bottom = this.page.scrollHeight - this.page.clientHeight;
    // Samples side by side are read from their top: it stays in sight while they grow.
    const group = document.querySelector("#transcript > .grouped:last-child");
    const bar = document.querySelector(".bar").offsetHeight;
    return group ? Math.min(bottom, group.offsetTop - bar) : bottom;
  }

  look() {
    this.following = this.end - this.page.scrollTop < 60;
    this.button.hidden = this.following;
  }

  keep() {
    if (!this.following) this.look();
    else if (this.page.scrollTop < this.end) this.page.scrollTop = this.end;
  }

  toEnd() {
    this.following = true;
    this.button.hidden = true;
    requestAnimationFrame(() => this.keep());
  }
}

/** Puts an answer into the live region sentence by sentence, not token by token. */
export class Reader {
  constructor() {
    this.node = null;
    this.said = 0;
  }

  read(node) {
    if (node !== this.node) {
      this.node = node;
      this.said = 0;
    }
    const rest = textOf(node).slice(this.said);
    const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => rest.lastIndexOf(mark)));
    if (end < 20) return;
    announce(rest.slice(0, end + 1).trim());
    this.said += end + 1;
  }

  end(node, state) {
    if (!node) return;
    const rest = textOf(node)
      .slice(node === this.node ? this.said : 0)
      .trim();
    this.node = null;
    announce(`${rest}${state === "done" ? "" : " The answer was cut off."}`);
  }
}
