/* The theme: as the system, light, dark. */
import { $, recall, remember } from './text.js';

const THEMES = ['', 'light', 'dark'];

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  const text = `Theme: ${name || 'as the system'}`;
  $('theme').title = text;
  $('theme-text').textContent = text;
  remember('theme', name);
}

export function nextTheme() {
  const at = THEMES.indexOf(document.documentElement.dataset.theme || '');
  setTheme(THEMES[(at + 1) % THEMES.length]);
}

setTheme(THEMES.includes(recall('theme')) ? recall('theme') : '');
$('theme').addEventListener('click', nextTheme);
