import {
  Anchor,
  Badge,
  Group,
  Pagination,
  Paper,
  Select,
  Stack,
  Table,
  Text,
  TextInput,
  Title,
  Tooltip,
} from "@mantine/core";
import { useMediaQuery } from "@mantine/hooks";
import { Fragment, useMemo, useState } from "react";
import { Link } from "react-router";
import type { ProxyState, ProxyStatus, RevisionSummary, Rollout } from "../api/types";
import { isNotable, lagOf } from "../lib/board";
import { isCanary, isOpen, isStepwise, stepwiseFleets } from "../lib/rollout";
import { formatDuration, formatPercent, formatRate, plural } from "../lib/format";
import { Age } from "./Age";
import { ForgetProxy } from "./ForgetProxy";
import { Fault } from "./Rejections";
import { IconSearch } from "./icons";
import { PROXY_STATES, ProxyBadge } from "./StateBadge";
import { Empty } from "./states";

/** The number of rows on one page. More rows would keep the browser busy with rows that nobody reads. */
const PAGE = 25;
/** The number of faulty resources that are shown for each proxy. */
const SHOWN_FAULTS = 3;

export type ProxyFilter = { state: ProxyState | null; text: string };

type Props = {
  proxies: ProxyStatus[];
  revisions: RevisionSummary[];
  rollouts: Rollout[];
  filter: ProxyFilter;
  onFilter: (filter: ProxyFilter) => void;
};

export function ProxyTable({ proxies, revisions, rollouts, filter, onFilter }: Props) {
  const wide = useMediaQuery("(min-width: 75em)", true);
  const [wanted, setPage] = useState(1);
  const shown = useMemo(() => proxies.filter((proxy) => matches(proxy, filter)), [proxies, filter]);
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  const page = Math.min(wanted, pages);
  const stepwise = useMemo(() => stepwiseFleets(proxies, rollouts), [proxies, rollouts]);
  const rows = shown.slice((page - 1) * PAGE, page * PAGE);
  return (
    <Paper>
      <Group px="md" pt="md" pb={4} justify="space-between">
        <Title order={2} size="h4">
          Proxies
        </Title>
        <Group gap="xs">
          <Select
            aria-label="Show proxies in state"
            placeholder="any state"
            size="xs"
            w={140}
            clearable
            data={(Object.keys(PROXY_STATES) as ProxyState[]).map((state) => ({
              value: state,
              label: PROXY_STATES[state].label,
            }))}
            value={filter.state}
            onChange={(state) => onFilter({ ...filter, state: state as ProxyState | null })}
          />
          <TextInput
            aria-label="Find proxies"
            placeholder="id, label, address"
            size="xs"
            w={200}
            type="search"
            leftSection={<IconSearch size={14} />}
            value={filter.text}
            onChange={(event) => onFilter({ ...filter, text: event.currentTarget.value })}
          />
        </Group>
      </Group>
      {shown.length === 0 ? (
        <Empty title={proxies.length === 0 ? "No proxies yet" : "No proxy matches"}>
          {proxies.length === 0
            ? "A proxy appears here as soon as it has connected to a control plane."
            : "Try another state or another search text."}
        </Empty>
      ) : (
        <Table className="table" verticalSpacing={8} data-testid="proxies">
          <Table.Thead>
            <Table.Tr>
              <Table.Th>Proxy</Table.Th>
              <Table.Th>State</Table.Th>
              {wide ? (
                <>
                  <Table.Th className="num">Assigned</Table.Th>
                  <Table.Th className="num">Sent</Table.Th>
                  <Table.Th className="num">Applied</Table.Th>
                </>
              ) : (
                <Table.Th className="num">Revision</Table.Th>
              )}
              <Table.Th>Lag</Table.Th>
              <Table.Th className="num">Apply</Table.Th>
              <Table.Th className="num">Serving since</Table.Th>
              {wide ? (
                <>
                  <Table.Th className="num">Requests/s</Table.Th>
                  <Table.Th className="num">Errors</Table.Th>
                  <Table.Th className="num">p99</Table.Th>
                </>
              ) : (
                <Table.Th className="num">Traffic</Table.Th>
              )}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {rows.map((proxy) => (
              <ProxyRow key={proxy.id} proxy={proxy} revisions={revisions} rollouts={rollouts} stepwise={stepwise} wide={wide} />
            ))}
          </Table.Tbody>
        </Table>
      )}
      {pages > 1 && (
        <Group justify="space-between" p="md">
          <Text size="sm" c="dimmed">
            {plural(shown.length, "proxy", "proxies")}
          </Text>
          <Pagination total={pages} value={page} onChange={setPage} size="sm" />
        </Group>
      )}
    </Paper>
  );
}

function ProxyRow({
  proxy,
  revisions,
  rollouts,
  stepwise,
  wide,
}: {
  proxy: ProxyStatus;
  revisions: RevisionSummary[];
  rollouts: Rollout[];
  stepwise: Set<string>;
  wide: boolean;
}) {
  const { revision, traffic, error } = proxy;
  const lag = lagOf(proxy, revisions);
  const live = proxy.connected ? traffic : null;
  const rate = live ? formatRate(live.requests_per_second) : "–";
  const p99 = live && live.requests_per_second > 0 ? formatDuration(live.p99_ms) : "–";
  return (
    <Fragment>
      <Table.Tr
        className={error ? "rejected-row" : undefined}
        data-proxy={proxy.id}
        data-applied={revision.applied}
        data-state={proxy.state}
        data-because={revision.assigned_because}
      >
        <Table.Td style={{ maxWidth: 320 }}>
          <Text size="sm" fw={600} className="mono breaks">
            {proxy.id}
          </Text>
          <Text className="cell-sub breaks">
            {proxy.address} · {proxy.version}
            {proxy.fleet !== "default" && ` · fleet ${proxy.fleet}`}
          </Text>
          <Labels labels={proxy.labels} />
          {proxy.warnings.map((warning) => (
            <Text key={warning} size="xs" c="orange" mt={4} className="breaks">
              {warning}
            </Text>
          ))}
        </Table.Td>
        <Table.Td>
          <ProxyBadge state={proxy.state} />
          {!proxy.connected && (
            <Stack gap={2} mt={4}>
              <Text className="cell-sub">
                last seen <Age at={proxy.last_seen} ago />
              </Text>
              <ForgetProxy id={proxy.id} />
            </Stack>
          )}
        </Table.Td>
        {wide ? (
          <>
            <Table.Td className="num">
              {revision.assigned}
              <Because proxy={proxy} rollouts={rollouts} stepwise={stepwise} />
            </Table.Td>
            <Table.Td className="num">{revision.sent}</Table.Td>
            <Table.Td className="num" fw={600}>
              {revision.applied}
            </Table.Td>
          </>
        ) : (
          <Table.Td className="num">
            <Text size="sm" fw={600}>
              {revision.applied}
            </Text>
            <Text className="cell-sub">sent {revision.sent}</Text>
            <Text className="cell-sub">assigned {revision.assigned}</Text>
            <Because proxy={proxy} rollouts={rollouts} stepwise={stepwise} />
          </Table.Td>
        )}
        <Table.Td>
          {lag.revisions === 0 ? (
            <Text size="sm" c="dimmed">
              none
            </Text>
          ) : (
            <>
              <Text size="sm" fw={600} className="nowrap">
                {plural(lag.revisions, "revision")}
              </Text>
              {lag.since && (
                <Text className="cell-sub">
                  for <Age at={lag.since} />
                </Text>
              )}
            </>
          )}
        </Table.Td>
        <Table.Td className="num">{proxy.apply_ms == null ? "–" : formatDuration(proxy.apply_ms)}</Table.Td>
        <Table.Td className="num">{revision.applied_at ? <Age at={revision.applied_at} /> : "–"}</Table.Td>
        {wide ? (
          <>
            <Table.Td className="num">{rate}</Table.Td>
            <Table.Td className="num">
              <Failures traffic={live ?? null} />
            </Table.Td>
            <Table.Td className="num">{p99}</Table.Td>
          </>
        ) : (
          <Table.Td className="num">
            <Text size="sm">{rate} req/s</Text>
            <Failures traffic={live ?? null} />
            <Text className="cell-sub">p99 {p99}</Text>
          </Table.Td>
        )}
      </Table.Tr>
      {error && (
        <Table.Tr className="rejected-row" data-rejection={proxy.id}>
          <Table.Td colSpan={wide ? 11 : 7} pt={0}>
            <Text size="sm" c="red" fw={600}>
              {proxy.state === "drifted" ? "Drifted from" : "Rejected"} revision {error.revision}
            </Text>
            {error.resources.slice(0, SHOWN_FAULTS).map((fault) => (
              <Text
                size="sm"
                key={`${fault.kind}/${fault.name}/${fault.field}/${fault.message}`}
                className="breaks"
                lineClamp={3}
                title={fault.message}
              >
                <Fault fault={fault} />
              </Text>
            ))}
            {error.resources.length > SHOWN_FAULTS && (
              <Text size="sm">and {error.resources.length - SHOWN_FAULTS} more</Text>
            )}
          </Table.Td>
        </Table.Tr>
      )}
    </Fragment>
  );
}

/** The reason why the proxy is to serve its revision. A fleet without a policy of steps follows the newest revision. */
function Because({ proxy, rollouts, stepwise }: { proxy: ProxyStatus; rollouts: Rollout[]; stepwise: Set<string> }) {
  const { assigned, assigned_because: because } = proxy.revision;
  if (!isCanary(proxy)) return <Text className="cell-sub">{stepwise.has(proxy.fleet) ? "stable" : "newest"}</Text>;
  const rollout = rollouts.find(
    (each) => each.fleet === proxy.fleet && each.revision === assigned && isStepwise(each) && isOpen(each),
  );
  if (!rollout) return <Text className="cell-sub">{because}</Text>;
  return (
    <Anchor component={Link} to={`/rollouts/${rollout.id}`} size="xs" display="block" title={`It is a canary of rollout ${rollout.id}`}>
      {because}
    </Anchor>
  );
}

/** The shares of failed requests, by class. Classes without requests are left out, except 5xx. */
function Failures({ traffic }: { traffic: ProxyStatus["traffic"] }) {
  if (!traffic) return "–";
  const { no_route: noRoute = 0, "4xx": clientErrors = 0 } = traffic.classes ?? {};
  return (
    <>
      <Text size="sm" className="nowrap" c={isNotable(traffic.error_ratio) ? "red" : undefined}>
        {formatPercent(traffic.error_ratio)} <span className="cell-sub">5xx</span>
      </Text>
      {clientErrors > 0 && <Text className="cell-sub">{formatPercent(clientErrors)} 4xx</Text>}
      {noRoute > 0 && (
        <Text className="cell-sub" c={isNotable(noRoute) ? "orange" : undefined}>
          {formatPercent(noRoute)} no route
        </Text>
      )}
    </>
  );
}

function Labels({ labels }: { labels: { [key: string]: string } }) {
  const all = Object.entries(labels);
  if (all.length === 0) return null;
  return (
    <Group gap={4} mt={4}>
      {all.map(([key, value]) => (
        <Tooltip key={key} label={`${key}=${value}`}>
          <Badge variant="default" size="sm" tt="none" fw={400} radius="sm" maw={180}>
            {key}={value}
          </Badge>
        </Tooltip>
      ))}
    </Group>
  );
}

function matches(proxy: ProxyStatus, { state, text }: ProxyFilter): boolean {
  if (state && proxy.state !== state) return false;
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return true;
  const labels = Object.entries(proxy.labels).map(([key, value]) => `${key}=${value}`);
  const all = [proxy.id, proxy.address, proxy.version, proxy.fleet, ...labels].join(" ").toLowerCase();
  return words.every((word) => all.includes(word));
}
