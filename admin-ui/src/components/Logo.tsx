/** A signal box's semaphore with its arm up: the line is clear. */
export function Logo({ size = 28 }: { size?: number }) {
  return (
    <svg
      width={size}
      height={size}
      viewBox="0 0 32 32"
      aria-hidden="true"
      style={{ display: "block", flex: "none" }}
    >
      <rect width="32" height="32" rx="7" fill="#155e6e" />
      <path d="M11 27V5" stroke="#fff" strokeWidth="3" strokeLinecap="round" />
      <g transform="rotate(-32 11 11)">
        <path d="M8 8h19v6H8z" fill="#f2694b" />
        <path d="M20 8h3v6h-3z" fill="#fff" />
      </g>
      <circle cx="11" cy="11" r="2.2" fill="#fff" />
    </svg>
  );
}
