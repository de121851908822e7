import { Button, Group, Paper, Select, Stack, Text, Title } from "@mantine/core";
import { useState } from "react";
import { useSearchParams } from "react-router";
import { useProxies, useRolloutList, useRollouts } from "../api/queries";
import type { RolloutState } from "../api/types";
import { RolloutTable } from "../components/RolloutTable";
import { ROLLOUT_STATES } from "../components/StateBadge";
import { Empty, Failed, Loading } from "../components/states";

/** The rows that are shown at first. */
const SHOWN = 50;

const STATES = Object.keys(ROLLOUT_STATES) as RolloutState[];

export function RolloutsPage() {
  const [search, setSearch] = useSearchParams();
  const fleet = search.get("fleet");
  const state = STATES.find((each) => each === search.get("state")) ?? null;
  const list = useRolloutList({ fleet, state });
  const proxies = useProxies().data ?? [];
  const [shown, setShown] = useState(SHOWN);
  const filter = (name: string, value: string | null) => {
    setSearch(
      (old) => {
        if (value === null) old.delete(name);
        else old.set(name, value);
        return old;
      },
      { replace: true },
    );
    setShown(SHOWN);
  };
  return (
    <Stack gap="lg">
      <div>
        <Title order={1} size="h3">
          Rollouts
        </Title>
        <Text size="sm" c="dimmed">
          A rollout brings a revision to the proxies of a fleet: at once, or step by step while gates compare the canaries with the
          other proxies.
        </Text>
      </div>
      <Paper>
        <Group p="md" pb="xs" gap="sm">
          <FleetSelect value={fleet} onChange={(value) => filter("fleet", value)} />
          <Select
            aria-label="Show rollouts in state"
            placeholder="any state"
            w={180}
            clearable
            data={STATES.map((each) => ({ value: each, label: ROLLOUT_STATES[each].label }))}
            value={state}
            onChange={(value) => filter("state", value)}
          />
        </Group>
        {list.error && !list.data ? (
          <Stack p="md">
            <Failed what="the rollouts" error={list.error} retry={() => list.refetch()} />
          </Stack>
        ) : !list.data ? (
          <Loading what="the rollouts" />
        ) : list.data.length === 0 ? (
          <Empty title={fleet === null && state === null ? "No rollouts yet" : "No rollout matches"}>
            {fleet === null && state === null
              ? "A rollout begins when a revision is written and a fleet has proxies."
              : "Try another fleet or another state."}
          </Empty>
        ) : (
          <RolloutTable rollouts={list.data.slice(0, shown)} proxies={proxies} />
        )}
        {list.data && list.data.length > shown && (
          <Group justify="center" p="md">
            <Button variant="default" onClick={() => setShown(shown + SHOWN)}>
              Show older
            </Button>
          </Group>
        )}
      </Paper>
    </Stack>
  );
}

function FleetSelect({ value, onChange }: { value: string | null; onChange: (fleet: string | null) => void }) {
  const rollouts = useRollouts().data ?? [];
  const proxies = useProxies().data ?? [];
  const known = [...rollouts, ...proxies].map(({ fleet }) => fleet);
  const fleets = [...new Set(value === null ? known : [...known, value])].sort();
  return (
    <Select
      aria-label="Show rollouts of fleet"
      placeholder="any fleet"
      w={220}
      clearable
      searchable
      data={fleets}
      value={value}
      onChange={onChange}
      nothingFoundMessage="No fleet matches"
    />
  );
}
