import { ActionIcon, Tooltip, useMantineColorScheme } from "@mantine/core";
import { IconAuto, IconMoon, IconSun } from "./icons";

const NEXT = { auto: "light", light: "dark", dark: "auto" } as const;
const LABELS = { auto: "System colours", light: "Light colours", dark: "Dark colours" };
const ICONS = { auto: <IconAuto />, light: <IconSun />, dark: <IconMoon /> };

/** Switches between the colours of the system, light and dark. */
export function ColorSchemeToggle() {
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return (
    <Tooltip label={LABELS[colorScheme]}>
      <ActionIcon
        variant="subtle"
        color="gray"
        size="lg"
        aria-label={`${LABELS[colorScheme]}; change`}
        onClick={() => setColorScheme(NEXT[colorScheme])}
      >
        {ICONS[colorScheme]}
      </ActionIcon>
    </Tooltip>
  );
}
