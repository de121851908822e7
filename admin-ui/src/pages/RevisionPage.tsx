import {
  Anchor,
  Badge,
  Breadcrumbs,
  Button,
  Group,
  Paper,
  Select,
  SimpleGrid,
  Stack,
  Text,
  Title,
} from "@mantine/core";
import { useState } from "react";
import { Link, useNavigate, useParams, useSearchParams } from "react-router";
import { Problem } from "../api/problem";
import { useDiff, useProxies, useRevision, useRevisions, useRollback, useRollouts } from "../api/queries";
import type { Change, RevisionDetail } from "../api/types";
import { Age } from "../components/Age";
import { Fact } from "../components/Facts";
import { Confirm } from "../components/Confirm";
import { Diff } from "../components/Diff";
import { Guard } from "../components/Guard";
import { IconUndo } from "../components/icons";
import { Fault } from "../components/Rejections";
import { useWatchRevision } from "../components/RolloutStrip";
import { Standings } from "../components/Standings";
import { Empty, Failed, Loading } from "../components/states";
import { convergenceOf } from "../lib/board";
import { formatDuration, formatTime, plural } from "../lib/format";

export function RevisionPage() {
  const number = Number(useParams().number);
  const [search, setSearch] = useSearchParams();
  const from = search.get("from");
  const revision = useRevision(number);
  if (!Number.isSafeInteger(number) || (revision.error instanceof Problem && revision.error.status === 404)) {
    return (
      <Paper>
        <Empty
          title="This revision does not exist"
          action={
            <Button component={Link} to="/revisions" variant="default">
              All revisions
            </Button>
          }
        />
      </Paper>
    );
  }
  if (revision.error) {
    return <Failed what={`revision ${number}`} error={revision.error} retry={() => revision.refetch()} />;
  }
  if (!revision.data) return <Loading what={`revision ${number}`} />;
  return (
    <Stack gap="lg">
      <Head revision={revision.data} />
      <Facts revision={revision.data} />
      <Group justify="space-between" align="flex-end">
        <Title order={2} size="h4">
          {from === null ? "Changes" : `Changes from revision ${from} to ${number}`}
        </Title>
        <CompareWith
          number={number}
          from={from}
          onChange={(from) => setSearch(from === null ? {} : { from }, { replace: true })}
        />
      </Group>
      {from === null ? (
        <Changes changes={revision.data.changes} none="This revision has no changes." />
      ) : (
        <Comparison from={Number(from)} to={number} />
      )}
    </Stack>
  );
}

function Head({ revision }: { revision: RevisionDetail }) {
  const revisions = useRevisions();
  const head = revisions.data?.pages[0]?.items[0]?.number;
  return (
    <div>
      <Breadcrumbs separator="›" fz="sm" mb={4}>
        <Anchor component={Link} to="/revisions" size="sm">
          Revisions
        </Anchor>
        <Text size="sm" c="dimmed">
          {revision.number}
        </Text>
      </Breadcrumbs>
      <Group justify="space-between" align="flex-start" wrap="nowrap">
        <div style={{ minWidth: 0 }}>
          <Group gap="sm">
            <Title order={1} size="h3">
              Revision {revision.number}
            </Title>
            {revision.number === head && (
              <Badge variant="outline" tt="none" radius="sm">
                head
              </Badge>
            )}
          </Group>
          <Text className="breaks" style={{ whiteSpace: "pre-line" }}>
            {revision.message || (
              <Text span c="dimmed">
                no message
              </Text>
            )}
          </Text>
        </div>
        {head !== undefined && revision.number < head && <RollBack number={revision.number} head={head} />}
      </Group>
    </div>
  );
}

function Facts({ revision }: { revision: RevisionDetail }) {
  const rollouts = useRollouts();
  const proxies = useProxies();
  const row = convergenceOf(revision.number, undefined, rollouts.data ?? [], proxies.data ?? []);
  return (
    <Paper p="md">
      <SimpleGrid cols={{ base: 2, sm: 4 }}>
        <Fact name="Author">
          <span className="mono">{revision.author}</span>
        </Fact>
        <Fact name="Committed">
          {formatTime(revision.committed_at)}
          <Text className="cell-sub">
            <Age at={revision.committed_at} ago />
          </Text>
        </Fact>
        <Fact name="In the fleets">
          <Standings revision={revision.number} rollouts={rollouts.data ?? []} />
          {row.state && !row.isTakenBack && (
            <Text className="cell-sub">
              {row.applied} of {plural(row.total, "proxy", "proxies")} serve this revision or a later one
            </Text>
          )}
          {row.rejected > 0 && (
            <Text className="cell-sub" c="var(--mantine-color-error)">
              {plural(row.rejected, "proxy", "proxies")} rejected this revision
            </Text>
          )}
          {row.fault && (
            <Text className="cell-sub breaks" data-testid="fault">
              {row.fault.proxy}: <Fault fault={row.fault} />
              {row.fault.revision !== revision.number && (
                <>
                  {" "}
                  The resource was written in revision{" "}
                  <Anchor component={Link} to={`/revisions/${row.fault.revision}`} inherit>
                    {row.fault.revision}
                  </Anchor>
                  .
                </>
              )}
            </Text>
          )}
        </Fact>
        <Fact name="Propagation">
          {row.p99 !== null && row.p50 !== null && row.max !== null ? (
            <>
              {formatDuration(row.max)} until the last ACK
              <Text className="cell-sub">
                median {formatDuration(row.p50)} · p99 {formatDuration(row.p99)}
              </Text>
            </>
          ) : (
            <Text c="dimmed">–</Text>
          )}
        </Fact>
      </SimpleGrid>
    </Paper>
  );
}

function CompareWith({
  number,
  from,
  onChange,
}: {
  number: number;
  from: string | null;
  onChange: (from: string | null) => void;
}) {
  const revisions = useRevisions();
  const known = revisions.data?.pages.flatMap((page) => page.items) ?? [];
  const data = known
    .filter((revision) => revision.number !== number)
    .map((revision) => ({
      value: String(revision.number),
      label: revision.message ? `${revision.number}: ${revision.message}` : String(revision.number),
    }));
  if (from !== null && !data.some((each) => each.value === from)) data.push({ value: from, label: from });
  return (
    <Select
      aria-label="Compare with revision"
      placeholder="Compare with another…"
      w={280}
      data={data}
      value={from}
      onChange={onChange}
      searchable
      clearable
      limit={200}
      nothingFoundMessage="No revision matches"
    />
  );
}

function Comparison({ from, to }: { from: number; to: number }) {
  const diff = useDiff(from, to);
  if (diff.error) return <Failed what="the difference" error={diff.error} retry={() => diff.refetch()} />;
  if (!diff.data) return <Loading what="the difference" />;
  return <Changes changes={diff.data} none={`Revisions ${from} and ${to} are the same.`} />;
}

function Changes({ changes, none }: { changes: Change[]; none: string }) {
  const [shown, setShown] = useState(50);
  if (changes.length === 0) {
    return (
      <Paper>
        <Empty title={none} />
      </Paper>
    );
  }
  return (
    <Stack gap="md" data-testid="changes">
      {changes.slice(0, shown).map((change) => (
        <ChangeCard key={`${change.kind}/${change.name}`} change={change} />
      ))}
      {changes.length > shown && (
        <Button variant="default" onClick={() => setShown(shown + 200)}>
          Show more of {plural(changes.length, "change")}
        </Button>
      )}
    </Stack>
  );
}

function ChangeCard({ change }: { change: Change }) {
  const [verb, color] = !change.before
    ? (["created", "teal"] as const)
    : !change.after
      ? (["deleted", "red"] as const)
      : (["changed", "blue"] as const);
  return (
    <Paper style={{ overflow: "hidden" }}>
      <Group gap="sm" px="md" py="xs" className="diff-head">
        <Text size="sm" c="dimmed">
          {change.kind}
        </Text>
        <Text size="sm" fw={600} className="mono breaks">
          {change.name}
        </Text>
        <Badge color={color} variant="light" radius="sm" tt="none">
          {verb}
        </Badge>
      </Group>
      <Diff before={change.before} after={change.after} />
    </Paper>
  );
}

function RollBack({ number, head }: { number: number; head: number }) {
  const [asking, setAsking] = useState(false);
  const rollback = useRollback();
  const watch = useWatchRevision();
  const navigate = useNavigate();
  const run = () =>
    rollback.mutate(number, {
      onSuccess: ({ revision }) => {
        setAsking(false);
        watch(revision);
        navigate(revision === null ? "/revisions" : `/revisions/${revision}`);
      },
    });
  return (
    <>
      <Guard>
        <Button
          variant="default"
          leftSection={<IconUndo size={16} />}
          onClick={() => setAsking(true)}
          style={{ flex: "none" }}
        >
          Roll back to this
        </Button>
      </Guard>
      <Confirm
        opened={asking}
        close={() => setAsking(false)}
        title={`Roll back to revision ${number}?`}
        action="Roll back"
        mutation={{ ...rollback, run }}
      >
        A new revision restores all resources to their state in revision {number}. It undoes the changes of{" "}
        {number + 1 === head ? `revision ${head}, which stays` : `revisions ${number + 1} to ${head}, which stay`} in
        the history.{" "}
        <Anchor component={Link} to={`/revisions/${number}?from=${head}`} onClick={() => setAsking(false)}>
          Show the changes
        </Anchor>
      </Confirm>
    </>
  );
}
