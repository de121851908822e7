import type { ReactNode } from "react";

/** Icons on a grid of 24, drawn with strokes in the colour of the text. They stand beside words, so they are silent. */
function icon(drawing: ReactNode) {
  return function Icon({ size = 18 }: { size?: number }) {
    return (
      <svg
        width={size}
        height={size}
        viewBox="0 0 24 24"
        fill="none"
        stroke="currentColor"
        strokeWidth="1.8"
        strokeLinecap="round"
        strokeLinejoin="round"
        aria-hidden="true"
        style={{ display: "block", flex: "none" }}
      >
        {drawing}
      </svg>
    );
  };
}

export const IconPlus = icon(<path d="M12 5v14M5 12h14" />);
export const IconTrash = icon(<path d="M4 7h16M9 7V4h6v3M6.5 7l1 13h9l1-13M10 11v5M14 11v5" />);
export const IconSearch = icon(
  <>
    <circle cx="11" cy="11" r="6" />
    <path d="m20 20-4.5-4.5" />
  </>,
);
export const IconChevron = icon(<path d="m9 6 6 6-6 6" />);
export const IconDown = icon(<path d="m6 9 6 6 6-6" />);
export const IconCheck = icon(<path d="m5 12.5 4.5 4.5L19 7.5" />);
export const IconCross = icon(<path d="M6 6l12 12M18 6 6 18" />);
export const IconAlert = icon(<path d="M12 4 2.5 20h19L12 4zM12 10v4.5M12 17.4v.1" />);
export const IconClock = icon(
  <>
    <circle cx="12" cy="12" r="8" />
    <path d="M12 7.5V12l3 2" />
  </>,
);
export const IconDrift = icon(<path d="M4 8c3-3 5 3 8 0s5 3 8 0M4 16c3-3 5 3 8 0s5 3 8 0" />);
export const IconOff = icon(
  <>
    <circle cx="12" cy="12" r="8" />
    <path d="M6.5 17.5l11-11" />
  </>,
);
export const IconPause = icon(<path d="M9 6v12M15 6v12" />);
export const IconSun = icon(
  <>
    <circle cx="12" cy="12" r="4" />
    <path d="M12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M5.6 18.4 7 17M17 7l1.4-1.4" />
  </>,
);
export const IconMoon = icon(<path d="M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z" />);
export const IconAuto = icon(
  <>
    <circle cx="12" cy="12" r="8" />
    <path d="M12 4a8 8 0 0 1 0 16z" fill="currentColor" />
  </>,
);
export const IconUser = icon(
  <>
    <circle cx="12" cy="8.5" r="3.5" />
    <path d="M5 20c.8-4 3.4-6 7-6s6.2 2 7 6" />
  </>,
);
export const IconUp = icon(<path d="m6 15 6-6 6 6" />);
export const IconPlay = icon(<path d="M8 5.5v13l10.5-6.5z" />);
export const IconForward = icon(<path d="M6 6v12l7-6zM13.5 6v12l7-6z" />);
export const IconBack = icon(<path d="m15 6-6 6 6 6" />);
export const IconUndo = icon(<path d="M8 5 4 9l4 4M4 9h10a6 6 0 0 1 0 12h-3" />);
