import { createTheme, type MantineColorsTuple } from "@mantine/core";

const signal: MantineColorsTuple = [
  "#e8f6f8",
  "#d5ebef",
  "#abd6de",
  "#7dc0cc",
  "#58adbd",
  "#3f9fb1",
  "#2d8295",
  "#1f7183",
  "#155e6e",
  "#0d4653",
];

export const theme = createTheme({
  primaryColor: "signal",
  primaryShade: { light: 7, dark: 6 },
  colors: { signal },
  fontFamily: 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif',
  fontFamilyMonospace:
    'ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace',
  defaultRadius: "md",
  cursorType: "pointer",
  autoContrast: true,
  components: {
    Paper: { defaultProps: { withBorder: true } },
    Select: { defaultProps: { comboboxProps: { shadow: "md" } } },
    Modal: { defaultProps: { centered: true, radius: "lg" } },
    Tooltip: {
      defaultProps: { withArrow: true, openDelay: 250, events: { hover: true, focus: true, touch: true } },
    },
  },
});
