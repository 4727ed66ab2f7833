// Runs before the first paint, so that a chosen theme does not flash the other one first.
(() => {
  const chosen = localStorage.getItem("nanochat.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
