// The field that questions are written in, with its send or stop button, the number of samples and
// the context meter.

import { h, icon } from "./dom.js";

export class Composer {
  /** `actions`: send(text), stop(), samples(n). */
  constructor(form, actions) {
    this.form = form;
    this.actions = actions;
    this.input = form.querySelector("textarea");
    this.button = form.querySelector("#send");
    this.count = form.querySelector("#samples");
    this.meter = form.querySelector("#context");
    this.live = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.live) actions.stop();
      else this.send();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229)
        return;
      event.preventDefault();
      if (!this.live) this.send();
    });
    this.input.addEventListener("input", () => {
      sessionStorage.setItem("nanochat.draft", this.input.value);
      this.fit();
    });
    this.count.addEventListener("change", () => actions.samples(Number(this.count.value)));
    this.input.value = sessionStorage.getItem("nanochat.draft") ?? "";
    this.fit();
  }

  send() {
    const text = this.input.value.trim();
    if (!text) return this.input.focus();
    this.set("");
    this.actions.send(text);
  }

  set(text) {
    this.input.value = text;
    sessionStorage.setItem("nanochat.draft", text);
    this.fit();
  }

  fit() {
    if (CSS.supports("field-sizing", "content")) return;
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  limit(most) {
    const choices = [1, 2, 4, 8, most].filter((n, i, all) => n <= most && all.indexOf(n) === i);
    this.count.replaceChildren(
      ...choices.map((n) =>
        h("option", { value: String(n) }, n === 1 ? "1 answer" : `${n} samples`),
      ),
    );
  }

  show({ live, n, used, context }) {
    if (this.live !== live) {
      this.live = live;
      this.button.replaceChildren(
        icon(live ? "stop" : "send"),
        h("span", { class: "unseen" }, live ? "Stop" : "Send"),
      );
      this.button.classList.toggle("stopping", live);
      this.button.title = live ? "Stop (Esc)" : "Send (Enter)";
    }
    const value = String(n ?? 1);
    if (![...this.count.options].some((option) => option.value === value)) {
      this.count.append(h("option", { value }, `${value} samples`));
    }
    this.count.value = value;
    this.showContext(used, context);
  }

  /** Tokens of the conversation, out of those that the model can see at once. */
  showContext(used, context) {
    const share = Math.min(1, used / context);
    const meter = this.meter.querySelector("[role=meter]");
    meter.setAttribute("aria-valuemax", context);
    meter.setAttribute("aria-valuenow", Math.min(used, context));
    meter.style.setProperty("--share", share);
    this.meter.classList.toggle("full", share > 0.85);
    const words = `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens`;
    this.meter.querySelector("span").textContent = share > 0.85 ? `${words}, almost full` : words;
    this.meter.title =
      share > 0.85
        ? "The context is almost full: the model will lose sight of the oldest turns."
        : "Context: how much of what it can see at once this conversation fills.";
  }
}
