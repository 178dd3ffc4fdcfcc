// Put a cell into the notebook, as a person would: select the cell, insert one below, paste. No part of Jupyter's
// programming interface reaches a widget. Returns false where that did not work.

export async function insertCell(from, text) {
  const cell = from.closest(".jp-Cell") ?? document.querySelector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell.jp-mod-active");
  const notebook = cell?.closest(".jp-Notebook");
  if (!notebook) return false;
  const before = new Set(notebook.querySelectorAll(".jp-Cell"));
  const prompt = cell.querySelector(".jp-InputPrompt") ?? cell;
  for (const type of ["mousedown", "mouseup", "click"]) {
    prompt.dispatchEvent(new MouseEvent(type, { bubbles: true, cancelable: true, button: 0 }));
  }
  await pause(60);
  const target = document.activeElement && notebook.contains(document.activeElement) && !from.closest(".llama-panel")?.contains(document.activeElement) ? document.activeElement : cell;
  if (target === cell) cell.focus?.();
  press(notebook.contains(document.activeElement) ? document.activeElement : cell, "Escape", 27);
  press(notebook.contains(document.activeElement) ? document.activeElement : cell, "b", 66);
  for (let tries = 0; tries < 20; tries += 1) {
    await pause(50);
    const fresh = [...notebook.querySelectorAll(".jp-Cell")].find((each) => !before.has(each));
    const editor = fresh?.querySelector(".cm-content");
    if (editor) {
      editor.focus();
      await pause(30);
      const data = new DataTransfer();
      data.setData("text/plain", text);
      editor.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
      await pause(60);
      fresh.scrollIntoView({ block: "nearest" });
      return editor.textContent.length > 0;
    }
  }
  return false;
}

function press(node, key, code) {
  node.dispatchEvent(new KeyboardEvent("keydown", { key, code: key === "b" ? "KeyB" : key, keyCode: code, which: code, bubbles: true, cancelable: true }));
}

function pause(ms) {
  return new Promise((done) => {
    setTimeout(done, ms);
  });
}
