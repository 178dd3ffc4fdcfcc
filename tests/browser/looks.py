"""What a page is for people: contrast by WCAG 2.x, names from the browser's accessibility tree, overflow, tab order."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page

__all__ = ["dead_controls", "low_contrast", "nameless", "open_folds", "tab_order", "too_wide"]

#: Text whose contrast is below 4.5 (3 where it is large): WCAG 2.x, success criterion 1.4.3, and its formula of relative
#: luminance. Grounds are laid over each other from the page to the text, with the opacity of each.
_CONTRAST = """(selector) => {
    const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const parse = (colour) => {
        const found = colour.match(/^rgba?\\(([^)]+)\\)$/);
        if (found) {
            const [r, g, b, a = 1] = found[1].split(/[\\s,/]+/).map(Number);
            return [r, g, b, a];
        }
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], below) => [r, g, b].map((value, at) => value * a + below[at] * (1 - a));
    const luminance = (colour) => {
        const [r, g, b] = colour.map((value) => value / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (one, other) => {
        const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
        return (high + 0.05) / (low + 0.05);
    };
    const judge = (node, colour, words, found) => {
        const chain = [];
        for (let each = node; each; each = each.parentElement) chain.unshift(each);
        let ground = [255, 255, 255];
        let opacity = 1;
        for (const each of chain) {
            const style = getComputedStyle(each);
            opacity *= Number(style.opacity);
            const [r, g, b, a] = parse(style.backgroundColor);
            ground = over([r, g, b, a * opacity], ground);
        }
        const [r, g, b, a] = parse(colour);
        const contrast = ratio(over([r, g, b, a * opacity], ground), ground);
        const style = getComputedStyle(node);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        if (contrast < (large ? 3 : 4.5)) {
            found.push(`${contrast.toFixed(2)}: ${node.tagName}.${node.getAttribute('class') ?? ''} “${words.trim().slice(0, 40)}”`);
        }
    };
    const found = [];
    for (const root of document.querySelectorAll(selector)) {
        const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const node = walker.currentNode.parentElement;
            if (!walker.currentNode.data.trim() || node.closest('[aria-hidden=true], option, datalist, title, style')) continue;
            if (!node.checkVisibility({ visibilityProperty: true })) continue;
            const style = getComputedStyle(node);
            judge(node, node.closest('svg') ? style.fill : style.color, walker.currentNode.data, found);
        }
        for (const node of root.querySelectorAll('input:not([type=range]):not([type=checkbox]), textarea, select')) {
            if (!node.checkVisibility({ visibilityProperty: true })) continue;
            judge(node, getComputedStyle(node).color, node.value || 'value', found);
            if (node.placeholder) judge(node, getComputedStyle(node, '::placeholder').color, node.placeholder, found);
        }
    }
    return [...new Set(found)];
}"""

#: What sticks out of the element and does not scroll inside of something.
_TOO_WIDE = """(selector) => {
    const root = document.querySelector(selector);
    const edge = root.getBoundingClientRect().right + 1;
    const scrolls = (node) => {
        for (let each = node.parentElement; each && each !== root.parentElement; each = each.parentElement) {
            if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(each).overflowX) && each !== root) return true;
        }
        return false;
    };
    return [...root.querySelectorAll('*')]
        .filter((node) => node.checkVisibility() && node.getBoundingClientRect().right > edge && !scrolls(node))
        .map((node) => `${node.tagName}.${node.getAttribute('class') ?? ''} ${node.textContent.slice(0, 30)}`);
}"""

_DEAD = """(selector) => [...document.querySelectorAll(selector)].flatMap((root) =>
    [...root.querySelectorAll('button, input, select, textarea')]
        .filter((node) => node.checkVisibility() && (node.disabled || node.getAttribute('aria-disabled') === 'true'))
        .filter((node) => !(node.getAttribute('aria-description') || node.title).trim())
        .map((node) => `${node.tagName} ${node.getAttribute('aria-label') || node.textContent || node.id}`))"""

_FOCUSABLE = """(selector) => {
    const root = document.querySelector(selector);
    const nodes = [...root.querySelectorAll('button, input, select, textarea, summary, a[href], [tabindex]')]
        .filter((node) => node.checkVisibility() && node.tabIndex >= 0 && !node.disabled);
    window.testFocusable = nodes;
    nodes[0].focus();
    return nodes.map((node) => `${node.tagName} ${node.getAttribute('aria-label') || node.textContent || node.id}`.slice(0, 50));
}"""
#: Where the focus is in that list, and whether it is seen; boxes that scroll get it by themselves, they are passed by.
_FOCUSED = """() => {
    const node = document.activeElement;
    const style = getComputedStyle(node);
    const at = window.testFocusable.indexOf(node);
    const scrolls = at < 0 && (node.scrollHeight > node.clientHeight || node.scrollWidth > node.clientWidth);
    return [at, style.outlineStyle !== 'none' || style.boxShadow !== 'none', scrolls];
}"""
#: Roles of what people act on, and of pictures, which have to say what they show.
_NAMED = {
    "button", "checkbox", "combobox", "DisclosureTriangle", "img", "image", "link", "listbox", "option", "progressbar",
    "radio", "radiogroup", "searchbox", "slider", "spinbutton", "tab", "tablist", "tabpanel", "textbox", "toolbar",
}  # fmt: skip


def low_contrast(page: Page, selector: str) -> list[str]:
    """Visible text with less contrast than WCAG's level AA wants."""
    found: list[str] = page.evaluate(_CONTRAST, selector)
    return found


def too_wide(page: Page, selector: str) -> list[str]:
    """What is drawn beyond the right edge of an element."""
    found: list[str] = page.evaluate(_TOO_WIDE, selector)
    return found


def dead_controls(page: Page, selector: str) -> list[str]:
    """Controls that can not be used and do not say why."""
    found: list[str] = page.evaluate(_DEAD, selector)
    return found


def open_folds(page: Page, selector: str) -> None:
    """Open all that is folded."""
    page.evaluate(
        "(selector) => { for (const fold of document.querySelectorAll(`${selector} details`)) fold.open = true; }",
        selector,
    )


def nameless(page: Page, selector: str) -> list[str]:
    """Roles of the controls that a screen reader could not name, by the browser's own accessibility tree."""
    session = page.context.new_cdp_session(page)
    session.send("Accessibility.enable")
    document = session.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    node = session.send("DOM.querySelector", {"nodeId": document, "selector": selector})["nodeId"]
    nodes: list[dict[str, Any]] = session.send("Accessibility.queryAXTree", {"nodeId": node})["nodes"]
    session.detach()
    roles = [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each["ignored"]]
    assert any(role == "button" for role, _ in roles), "the tree was read"
    return [role for role, name in roles if role in _NAMED and not name.strip()]


def tab_order(page: Page, selector: str) -> list[str]:
    """What the Tab key does not reach in the order of the page, or where no one sees that it was reached."""
    names: list[str] = page.evaluate(_FOCUSABLE, selector)
    missed = []
    for place, name in enumerate(names):
        at, marked, scrolls = page.evaluate(_FOCUSED)
        for _ in range(5):
            if not place or not (scrolls or at == place - 1):
                break
            page.keyboard.press("Tab")
            at, marked, scrolls = page.evaluate(_FOCUSED)
        if at != place:
            return [f"{name}: the focus was on {names[at] if at >= 0 else 'something else'}"]
        if place and not marked:
            missed.append(f"{name}: the focus is not seen")
    return missed
