// The few things only the browser can do: the theme, the session's key, and going between pages
// without loading them anew.
(() => {
  const KEY = "leasehold.session", THEME = "leasehold.theme";
  const store = window.localStorage;
  const apply = () => {
    const chosen = store.getItem(THEME);
    document.documentElement.style.colorScheme = chosen || "light dark";
  };
  apply();
  // A link from `leasehold dashboard` brings a key in its fragment, which no server ever sees.
  const given = /^#session=([\w-]{20,})$/.exec(location.hash);
  if (given) {
    store.setItem(KEY, given[1]);
    history.replaceState(null, "", location.pathname + location.search);
  }
  const here = () => location.pathname + location.search;
  window.leasehold = {
    place: () => ({ key: store.getItem(KEY) || "", path: here() }),
    reason: () => decodeURIComponent(new URLSearchParams(location.search).get("why") || ""),
    enter: (key, path) => { store.setItem(KEY, key); location.replace(path); },
    leave: (why) => {
      store.removeItem(KEY);
      location.replace("/ui/sign-in" + (why ? "?why=" + why : ""));
    },
    theme: () => {
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      const now = store.getItem(THEME) || (dark ? "dark" : "light");
      store.setItem(THEME, now === "dark" ? "light" : "dark");
      apply();
    },
    arrived: (title, focus) => {
      document.title = title;
      setTimeout(() => {
        const here = document.querySelector(".pages [aria-current]");
        if (here) here.scrollIntoView({ inline: "center", block: "nearest" });
      }, 200);
      if (focus) requestAnimationFrame(() => setTimeout(() => {
        const heading = document.getElementById("main");
        if (heading) { heading.focus({ preventScroll: true }); window.scrollTo(0, 0); }
      }, 150));
    },
  };
  document.documentElement.lang = "en";
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey
        || event.shiftKey || event.altKey || link.target === "_blank") return;
    const href = link.getAttribute("href");
    if (href === "#main") {
      event.preventDefault();
      document.getElementById("main").focus();
      return;
    }
    if (!href.startsWith("/")) return;
    event.preventDefault();
    history.pushState(null, "", href);
    emitEvent("leasehold-go", href);
    window.leasehold.arrived(document.title, true);
  });
  // A question that appears takes the focus, as a dialog would.
  new MutationObserver((changes) => {
    for (const change of changes) for (const added of change.addedNodes) {
      const asks = added.matches && (added.matches("[role=alertdialog]") ? added
        : added.querySelector("[role=alertdialog]"));
      if (asks) asks.querySelector("button").focus();
    }
  }).observe(document.documentElement, { childList: true, subtree: true });
  // The terminal takes every key, Tab too; F6 is the way out of it.
  document.addEventListener("keydown", (event) => {
    const box = event.key === "F6" && event.target.closest && event.target.closest(".terminal-box");
    if (!box) return;
    event.preventDefault();
    event.stopPropagation();
    document.querySelector(".terminal-leave").focus();
  }, true);
  window.addEventListener("popstate", () => emitEvent("leasehold-go", here()));
})();
