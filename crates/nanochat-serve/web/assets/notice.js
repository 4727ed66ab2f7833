// What went wrong with an answer, in words, with the thing to do about it.

import { h } from "./dom.js";

/** What an [ApiError] means: `{title, text, wait}`; `wait` in seconds, null if it does not help. */
export function explain(error) {
  switch (error.status) {
    case 0:
      return error.code === "cut"
        ? say(
            "The connection was lost",
            `The server at ${location.host} does not answer any more. What had arrived is kept.`,
          )
        : say(
            "No answer from the server",
            `Is “nanochat serve” still running at ${location.host}? Your message is kept.`,
          );
    case 401:
      return {
        ...say("The key is needed again", "Sign in, then ask again. Your message is kept."),
        signIn: true,
      };
    case 404:
      if (error.code === "stream_lost") {
        return say(
          "This answer was cut off",
          "The server was restarted, or has forgotten it. What had arrived is kept.",
        );
      }
      return say("Not found", error.message);
    case 410:
      return say(
        "This answer was stopped",
        "It was ended before it was whole, perhaps in another tab. What had arrived is kept.",
      );
    case 413:
      return say("Too long", `${error.message}. Shorten the message and ask again.`);
    case 429:
      return say(
        "The server is busy",
        "More people are asking than it can answer at once.",
        error.retryAfter ?? 5,
      );
    case 503:
      return say(
        "The server takes no questions at the moment",
        `${sentence(error.message)}`,
        error.retryAfter ?? 10,
      );
    default:
      return say(
        error.status < 500 ? "The server refused this" : "The server failed",
        `${sentence(error.message)}${error.param ? ` (${error.param})` : ""}`,
      );
  }
}

const say = (title, text, wait = null) => ({ title, text, wait });
const sentence = (text) =>
  `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/**
 * A notice with "Try again". Where the server said how long to wait it counts down and tries by
 * itself, unless the reader stops it.
 */
export function errorNotice(error, retry) {
  const { title, text, wait, signIn } = explain(error);
  const status = h("p", { class: "countdown" });
  let timer = null;
  const go = () => (clearInterval(timer), retry());
  const stop = h(
    "button",
    { type: "button", class: "outlined", onclick: () => end("Not trying by itself.") },
    "Do not wait",
  );
  const end = (words) => {
    clearInterval(timer);
    stop.remove();
    status.textContent = words;
  };
  const notice = h(
    "div",
    { class: "notice", role: "alert" },
    h("h2", {}, title),
    h("p", {}, text),
    wait === null ? null : status,
    h(
      "div",
      { class: "row" },
      signIn && h("a", { class: "filled", href: "/" }, "Sign in"),
      h(
        "button",
        { type: "button", class: signIn ? "outlined" : "filled", onclick: go },
        "Try again",
      ),
      wait === null ? null : stop,
    ),
  );
  if (wait !== null) {
    let left = Math.ceil(Math.max(1, wait));
    const show = () => (status.textContent = `Trying again in ${left} s.`);
    show();
    timer = setInterval(() => {
      if (!notice.isConnected && left < wait - 1) return clearInterval(timer);
      if (--left <= 0) go();
      else show();
    }, 1000);
  }
  notice.cancel = () => clearInterval(timer);
  return notice;
}

/** A question that nobody answered, found when a conversation is opened. */
export const unanswered = (ask) =>
  h(
    "div",
    { class: "notice" },
    h("p", {}, "This question has no answer yet."),
    h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "filled", onclick: ask }, "Answer it"),
    ),
  );

/** Stands in for an answer that the server has not accepted yet. */
export const asking = () =>
  h(
    "div",
    { class: "turn assistant" },
    h("h2", { class: "who" }, "Model"),
    h(
      "p",
      { class: "waiting" },
      h("span"),
      h("span"),
      h("span"),
      h("b", { class: "unseen" }, "Asking"),
    ),
  );
