import { Text, Tooltip } from "@mantine/core";
import { formatAge, formatTime, useNow } from "../lib/format";

/** The age of something, drawn again every second. The exact time appears on hover and focus. */
export function Age({ at, ago = false, size }: { at: string; ago?: boolean; size?: string }) {
  const now = useNow();
  const age = formatAge(now - new Date(at).getTime());
  return (
    <Tooltip label={formatTime(at)}>
      <Text component="time" dateTime={at} inherit={size === undefined} size={size} className="nowrap">
        {ago ? `${age} ago` : age}
      </Text>
    </Tooltip>
  );
}
