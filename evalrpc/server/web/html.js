// What every view imports: preact with htm, so that there is no build step.
import { h, render, Component, Fragment } from "./vendor/preact.js";
import { useCallback, useEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

const html = htm.bind(h);

export { html, render, Component, Fragment, useCallback, useEffect, useMemo, useRef, useState };
