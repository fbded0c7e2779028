// What every view imports: preact with htm, so that there is no build step.
import { h, render, Fragment } from "./vendor/preact.js";
import { useCallback, useEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

const html = htm.bind(h);

export { html, render, Fragment, useCallback, useEffect, useMemo, useRef, useState };
