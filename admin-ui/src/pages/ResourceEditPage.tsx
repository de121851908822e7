import {
  Alert,
  Anchor,
  Breadcrumbs,
  Button,
  Group,
  List,
  Modal,
  Paper,
  Stack,
  Tabs,
  Text,
  TextInput,
  Title,
} from "@mantine/core";
import { useState } from "react";
import { Link, useNavigate, useParams } from "react-router";
import { messageOf, Problem } from "../api/problem";
import { useResource, useSaveResource } from "../api/queries";
import type { Resource } from "../api/types";
import { Age } from "../components/Age";
import { DeleteResource } from "../components/DeleteResource";
import { Diff } from "../components/Diff";
import { IconAlert } from "../components/icons";
import { useWatchRevision } from "../components/RolloutStrip";
import { Empty, Failed, Loading } from "../components/states";
import { FormProvider, useFocusFirstError, useSpecForm } from "../forms/form";
import { RawEditor } from "../forms/RawEditor";
import type { KindInfo } from "../kinds";
import { sameJson, withoutEmpty } from "../lib/json";

export function ResourceCreatePage({ kind }: { kind: KindInfo }) {
  return <Editor kind={kind} stored={null} reload={() => {}} />;
}

export function ResourceEditPage({ kind }: { kind: KindInfo }) {
  const { name = "" } = useParams();
  const resource = useResource(kind.plural, name);
  // The editor starts anew when one asks for it, not whenever the resource changes under one's hands.
  const [opened, setOpened] = useState<{ name: string; stored: Resource; count: number } | null>(null);
  if (resource.error instanceof Problem && resource.error.status === 404 && opened?.name !== name) {
    return (
      <Paper>
        <Empty
          title={`There is no ${kind.singular} ${name}`}
          action={
            <Button component={Link} to={`/${kind.plural}`} variant="default">
              All {kind.plural}
            </Button>
          }
        >
          It may have been deleted.
        </Empty>
      </Paper>
    );
  }
  if (opened?.name !== name) {
    if (resource.error) {
      return (
        <Failed what={`${kind.singular} ${name}`} error={resource.error} retry={() => resource.refetch()} />
      );
    }
    if (!resource.data || resource.isFetching) return <Loading what={`${kind.singular} ${name}`} />;
    setOpened({ name, stored: resource.data, count: 0 });
    return null;
  }
  const reload = (stored: Resource) => setOpened({ name, stored, count: opened.count + 1 });
  return <Editor key={`${name} ${opened.count}`} kind={kind} stored={opened.stored} reload={reload} />;
}

type EditorProps = { kind: KindInfo; stored: Resource | null; reload: (stored: Resource) => void };

function Editor({ kind, stored, reload }: EditorProps) {
  const navigate = useNavigate();
  const watch = useWatchRevision();
  const form = useSpecForm(stored?.spec ?? kind.initial);
  const errorRef = useFocusFirstError(form.errors);
  const save = useSaveResource(kind.plural);
  const [message, setMessage] = useState("");
  const [broken, setBroken] = useState(false);
  const [conflict, setConflict] = useState(false);
  const [unchanged, setUnchanged] = useState(false);
  const spec = withoutEmpty(form.spec, kind.optional);
  const name = stored?.name ?? (typeof spec.name === "string" ? spec.name : "");
  const changed = stored === null || !sameJson(spec, stored.spec);

  const submit = (version: string | null) => {
    setUnchanged(false);
    save.mutate(
      { name, version, spec, message },
      {
        onSuccess: (saved) => {
          setConflict(false);
          form.setErrors([]);
          if (saved.revision === null) setUnchanged(true);
          else watch(saved.revision);
          if (stored === null) navigate(`/${kind.plural}/${saved.resource.name}`, { replace: true });
          else reload(saved.resource);
        },
        onError: (error) => {
          if (error instanceof Problem && error.status === 412 && stored !== null) setConflict(true);
          form.setErrors(error instanceof Problem ? error.errors : []);
        },
      },
    );
  };

  return (
    <form
      noValidate
      onSubmit={(event) => {
        event.preventDefault();
        if (!broken) submit(stored?.meta.version ?? null);
      }}
    >
      <Stack gap="lg" maw={900} mx="auto" ref={errorRef}>
        <div>
          <Breadcrumbs separator="›" fz="sm" mb={4}>
            <Anchor component={Link} to={`/${kind.plural}`} size="sm">
              {kind.title}
            </Anchor>
            <Text size="sm" c="dimmed">
              {stored ? stored.name : "new"}
            </Text>
          </Breadcrumbs>
          <Group justify="space-between" align="flex-start">
            <div>
              <Title order={1} size="h3" className="breaks" ff={stored ? "monospace" : undefined}>
                {stored ? stored.name : `New ${kind.singular}`}
              </Title>
              {stored && (
                <Text size="sm" c="dimmed">
                  changed <Age at={stored.meta.updated_at} ago /> by{" "}
                  <span className="mono">{stored.meta.updated_by}</span> in revision{" "}
                  <Anchor component={Link} to={`/revisions/${stored.meta.revision}`}>
                    {stored.meta.revision}
                  </Anchor>
                </Text>
              )}
            </div>
            {stored && (
              <DeleteResource
                kind={kind}
                name={stored.name}
                version={stored.meta.version}
                onDeleted={() => navigate(`/${kind.plural}`)}
              />
            )}
          </Group>
        </div>

        <ErrorSummary error={save.error} unplaced={form.unplaced} total={form.errors.length} />

        {/* Once it is saved the form begins anew: what is typed until then would be lost. */}
        <div inert={save.isPending}>
          <FormProvider form={form}>
            <Tabs defaultValue="form" keepMounted={false}>
              <Tabs.List mb="md">
                <Tabs.Tab value="form" disabled={broken}>
                  Form
                </Tabs.Tab>
                <Tabs.Tab value="raw">Specification</Tabs.Tab>
              </Tabs.List>
              <Tabs.Panel value="form">{kind.form(stored === null)}</Tabs.Panel>
              <Tabs.Panel value="raw">
                <Paper p="lg">
                  <RawEditor onBroken={setBroken} />
                </Paper>
              </Tabs.Panel>
            </Tabs>
          </FormProvider>
        </div>

        <Paper p="md" pos="sticky" bottom={12} shadow="md" style={{ zIndex: 2 }}>
          <Group gap="sm" wrap="nowrap">
            <TextInput
              aria-label="Message of the revision"
              placeholder="Message of the revision (optional): why this change?"
              style={{ flex: 1, minWidth: 0 }}
              value={message}
              maxLength={300}
              onChange={(event) => setMessage(event.currentTarget.value)}
            />
            {unchanged && (
              <Text size="sm" c="dimmed" role="status">
                Nothing differs
              </Text>
            )}
            <Button variant="default" component={Link} to={`/${kind.plural}`}>
              Cancel
            </Button>
            <Button type="submit" loading={save.isPending} disabled={broken || !changed}>
              {stored ? "Save" : `Create ${kind.singular}`}
            </Button>
          </Group>
        </Paper>
      </Stack>
      {conflict && stored && (
        <Conflict
          kind={kind}
          mine={spec}
          name={name}
          isSaving={save.isPending}
          close={() => setConflict(false)}
          reload={reload}
          overwrite={submit}
        />
      )}
    </form>
  );
}

/** What stopped a save, with all that no field shows. */
function ErrorSummary({
  error,
  unplaced,
  total,
}: {
  error: Error | null;
  unplaced: { field: string; message: string }[];
  total: number;
}) {
  if (!error || (error instanceof Problem && error.errors.length > 0 && total === 0)) return null;
  const placed = total - unplaced.length;
  return (
    <Alert color="red" icon={<IconAlert />} role="alert" title="Not saved" tabIndex={-1} data-error-summary>
      <Stack gap={4}>
        {total === 0 && (
          <Text size="sm">
            {error instanceof Problem && error.status === 412
              ? "It was changed meanwhile. Saving again shows how."
              : messageOf(error)}
          </Text>
        )}
        {placed > 0 && (
          <Text size="sm">
            {placed === 1 ? "One field is marked below." : `${placed} fields are marked below.`}
          </Text>
        )}
        {unplaced.length > 0 && (
          <List size="sm">
            {unplaced.map((each) => (
              <List.Item key={`${each.field} ${each.message}`} className="breaks">
                {each.field !== "" && <span className="mono">{each.field}: </span>}
                {each.message}
              </List.Item>
            ))}
          </List>
        )}
      </Stack>
    </Alert>
  );
}

type ConflictProps = {
  kind: KindInfo;
  name: string;
  mine: Resource["spec"];
  isSaving: boolean;
  close: () => void;
  reload: (stored: Resource) => void;
  overwrite: (version: string | null) => void;
};

/** Someone else was quicker: shows what is stored now against what one was about to store. */
function Conflict({ kind, name, mine, isSaving, close, reload, overwrite }: ConflictProps) {
  const current = useResource(kind.plural, name, "fresh");
  const deleted = current.error instanceof Problem && current.error.status === 404;
  const theirs = current.data;
  return (
    <Modal opened onClose={close} size="xl" title={<Text fw={600}>Changed meanwhile</Text>}>
      <Stack gap="md">
        {current.isFetching ? (
          <Loading what="what is stored now" />
        ) : deleted ? (
          <Text size="sm">
            The {kind.singular} <span className="mono">{name}</span> was deleted while you were editing it.
          </Text>
        ) : theirs ? (
          <>
            <Text size="sm">
              <span className="mono">{theirs.meta.updated_by}</span> changed {kind.singular}{" "}
              <span className="mono">{name}</span> <Age at={theirs.meta.updated_at} ago />, in revision{" "}
              {theirs.meta.revision}. This is what saving yours would change:
            </Text>
            <Paper style={{ maxHeight: "50vh", overflow: "auto" }}>
              <Diff before={theirs.spec} after={mine} />
            </Paper>
          </>
        ) : (
          <Failed what="what is stored now" error={current.error} retry={() => current.refetch()} />
        )}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>
            Keep editing
          </Button>
          {theirs && !deleted && (
            <Button variant="default" onClick={() => reload(theirs)}>
              Reload and lose mine
            </Button>
          )}
          {(theirs || deleted) && (
            <Button
              color="red"
              loading={isSaving}
              disabled={current.isFetching}
              onClick={() => overwrite(deleted || !theirs ? null : theirs.meta.version)}
            >
              {deleted ? "Create it again" : "Overwrite"}
            </Button>
          )}
        </Group>
      </Stack>
    </Modal>
  );
}
