theme.start();
for (const section of document.querySelectorAll("main > section")) {
  sections[section.dataset.kind](section.querySelector(".body"), read(`${section.id}-data`));
}
