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
import { type RefObject, useEffect, useRef, useState } from "react";
import { Link, useBlocker, useNavigate, useParams } from "react-router";
import { messageOf, Problem, Unanswered } from "../api/problem";
import { useResource, useSaveResource, useSession } from "../api/queries";
import type { Resource } from "../api/types";
import { Age } from "../components/Age";
import { DeleteResource } from "../components/DeleteResource";
import { Diff } from "../components/Diff";
import { Guard, useDenial } from "../components/Guard";
import { IconAlert } from "../components/icons";
import { useWatchRevision } from "../components/RolloutStrip";
import { Empty, Failed, Loading } from "../components/states";
import { draftKey, dropDraft, readDraft, useDraft, useWithoutSecrets } from "../forms/draft";
import { FormProvider, useFocusFailure, useSpecForm } from "../forms/form";
import { RawEditor } from "../forms/RawEditor";
import { FOR_DISPLAY, halfEdited } from "../forms/secrets";
import type { KindInfo } from "../kinds";
import { sameJson, withoutEmpty } from "../lib/json";

export function ResourceCreatePage({ kind }: { kind: KindInfo }) {
  const [count, setCount] = useState(0);
  return <Editor key={count} kind={kind} stored={null} restart={() => setCount(count + 1)} />;
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
  const restart = (stored: Resource | null) =>
    setOpened({ name, stored: stored ?? opened.stored, count: opened.count + 1 });
  return <Editor key={`${name} ${opened.count}`} kind={kind} stored={opened.stored} restart={restart} />;
}

type EditorProps = {
  kind: KindInfo;
  stored: Resource | null;
  /** Begins anew with what is stored; `null`: as it was known before. */
  restart: (stored: Resource | null) => void;
};

/** Why the last save failed; a new object each time, for each time it is shown. */
type Failure = { error: Error };

function Editor({ kind, stored, restart }: EditorProps) {
  const navigate = useNavigate();
  const watch = useWatchRevision();
  const denial = useDenial("editor");
  const by = useSession().data?.name ?? "";
  const key = draftKey(kind.plural, stored?.name ?? null, by);
  const [draft] = useState(() => readDraft(key));
  // The draft was typed over this version, so a version that is stored meanwhile is not overwritten unseen.
  const version = draft ? draft.version : (stored?.meta.version ?? null);
  const form = useSpecForm(draft?.spec ?? stored?.spec ?? kind.initial, stored?.spec);
  const save = useSaveResource(kind.plural);
  const [failure, setFailure] = useState<Failure | null>(null);
  const errorRef = useFocusFailure(failure);
  const [message, setMessage] = useState(draft?.message ?? "");
  const [broken, setBroken] = useState(false);
  const [conflict, setConflict] = useState(false);
  const [unchanged, setUnchanged] = useState(false);
  const spec = withoutEmpty(form.spec, kind.optional);
  const name = stored?.name ?? (typeof spec.name === "string" ? spec.name : "");
  const changed = stored === null || !sameJson(spec, stored.spec);
  const isDirty = broken || !sameJson(spec, stored?.spec ?? withoutEmpty(kind.initial, kind.optional));
  useDraft(kind.plural, key, isDirty, { spec: form.spec, message, version });
  const isLeaving = useRef(false);

  const submit = (version: string | null) => {
    setUnchanged(false);
    const half = halfEdited(spec, stored?.spec);
    if (half.length > 0) {
      form.setErrors(half);
      setFailure({ error: new Problem(422, "The form is not complete", "", half) });
      return;
    }
    save.mutate(
      { name, version, spec, message },
      {
        onSuccess: (saved) => {
          setConflict(false);
          setFailure(null);
          form.setErrors([]);
          dropDraft(key);
          isLeaving.current = true;
          if (saved.revision === null) setUnchanged(true);
          else watch(saved.revision);
          if (stored === null) navigate(`/${kind.plural}/${saved.resource.name}`, { replace: true });
          else restart(saved.resource);
        },
        onError: (error) => {
          setConflict(error instanceof Problem && error.status === 412 && version !== null);
          form.setErrors(error instanceof Problem ? error.errors : []);
          setFailure({ error });
        },
      },
    );
  };

  return (
    <form
      noValidate
      onSubmit={(event) => {
        event.preventDefault();
        if (!broken && denial === null) submit(version);
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
                onDeleted={() => {
                  dropDraft(key);
                  isLeaving.current = true;
                  navigate(`/${kind.plural}`);
                }}
              />
            )}
          </Group>
        </div>

        {denial !== null && (
          <Alert color="gray" title="You can look at this, but not change it">
            {denial}
          </Alert>
        )}
        {draft && (
          <Restored
            at={draft.at}
            isIncomplete={draft.isIncomplete}
            isOld={stored !== null && draft.version !== stored.meta.version}
            discard={() => {
              dropDraft(key);
              restart(null);
            }}
          />
        )}

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
              <Tabs.Panel value="form">
                <fieldset disabled={denial !== null} className="bare">
                  {kind.form(stored === null)}
                </fieldset>
              </Tabs.Panel>
              <Tabs.Panel value="raw">
                <Paper p="lg">
                  <RawEditor onBroken={setBroken} readOnly={denial !== null} />
                </Paper>
              </Tabs.Panel>
            </Tabs>
          </FormProvider>
        </div>

        <Paper p="md" pos="sticky" bottom={12} shadow="md" style={{ zIndex: 2 }}>
          <ErrorSummary error={failure?.error ?? null} unplaced={form.unplaced} total={form.errors.length} />
          <Group gap="sm" wrap="nowrap">
            <TextInput
              disabled={denial !== null}
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
            <Guard>
              <Button type="submit" loading={save.isPending} disabled={denial === null && (broken || !changed)}>
                {stored ? "Save" : `Create ${kind.singular}`}
              </Button>
            </Guard>
          </Group>
        </Paper>
      </Stack>
      <LeaveGuard
        isDirty={isDirty}
        isLeaving={isLeaving}
        discard={() => dropDraft(key)}
      />
      {conflict && stored && (
        <Conflict
          // After another conflict, what is stored now is another again.
          key={save.submittedAt}
          kind={kind}
          mine={spec}
          name={name}
          isSaving={save.isPending}
          close={() => setConflict(false)}
          reload={(theirs) => {
            dropDraft(key);
            restart(theirs);
          }}
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
  const isUnknown = error instanceof Unanswered && error.outcome === "unknown";
  return (
    <Alert
      color="red"
      icon={<IconAlert />}
      role="alert"
      title={isUnknown ? "Not known whether it was saved" : "Not saved"}
      tabIndex={-1}
      data-error-summary
      mb="sm"
      mah="40vh"
      style={{ overflowY: "auto" }}
    >
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
            {placed === 1 ? "One field is marked." : `${placed} fields are marked.`}
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

/** Tells that the form begins with what was typed earlier and not saved. */
function Restored({
  at,
  isIncomplete,
  isOld,
  discard,
}: {
  at: number;
  isIncomplete: boolean;
  isOld: boolean;
  discard: () => void;
}) {
  return (
    <Alert color="blue" title="Your unsaved changes are back" data-testid="draft">
      <Group justify="space-between" align="flex-end">
        <Text size="sm" style={{ flex: 1, minWidth: 240 }}>
          You typed them <Age at={new Date(at).toISOString()} ago />.
          {isIncomplete && " Secrets, and fields that are not known, were not kept: enter them again."}
          {isOld && " Somebody has changed it since; saving shows how."}
        </Text>
        <Button size="compact-sm" variant="default" onClick={discard}>
          Discard them
        </Button>
      </Group>
    </Alert>
  );
}

/** Asks before a changed form is left, by whatever way. */
function LeaveGuard({
  isDirty,
  isLeaving,
  discard,
}: {
  isDirty: boolean;
  /** It was saved or deleted, and is left for that. */
  isLeaving: RefObject<boolean>;
  discard: () => void;
}) {
  const blocker = useBlocker(
    ({ currentLocation, nextLocation }) =>
      isDirty && !isLeaving.current && currentLocation.pathname !== nextLocation.pathname,
  );
  useEffect(() => {
    if (!isDirty) return;
    const ask = (event: BeforeUnloadEvent) => event.preventDefault();
    window.addEventListener("beforeunload", ask);
    return () => window.removeEventListener("beforeunload", ask);
  }, [isDirty]);
  const stay = () => blocker.reset?.();
  return (
    <Modal
      opened={blocker.state === "blocked"}
      onClose={stay}
      title={<Text fw={600}>Leave without saving?</Text>}
    >
      <Stack gap="md">
        <Text size="sm">What you have changed here is not saved.</Text>
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={stay} data-autofocus>
            Keep editing
          </Button>
          <Button
            color="red"
            onClick={() => {
              discard();
              blocker.proceed?.();
            }}
          >
            Discard changes
          </Button>
        </Group>
      </Stack>
    </Modal>
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
  // A write without an answer may have been made all the same.
  const isStored = theirs !== undefined && !deleted && !current.isFetching && sameJson(theirs.spec, mine);
  const shown = useWithoutSecrets(kind.plural, mine, FOR_DISPLAY);
  return (
    <Modal opened onClose={close} size="xl" returnFocus={false} title={<Text fw={600}>{isStored ? "Already saved" : "Changed meanwhile"}</Text>}>
      <Stack gap="md">
        {current.isFetching ? (
          <Loading what="what is stored now" />
        ) : deleted ? (
          <Text size="sm">
            The {kind.singular} <span className="mono">{name}</span> was deleted while you were editing it.
          </Text>
        ) : isStored ? (
          <Text size="sm">
            The {kind.singular} <span className="mono">{name}</span> is stored as you have it, in revision{" "}
            {theirs.meta.revision}.
          </Text>
        ) : theirs ? (
          <>
            <Text size="sm">
              <span className="mono">{theirs.meta.updated_by}</span> changed {kind.singular}{" "}
              <span className="mono">{name}</span> <Age at={theirs.meta.updated_at} ago />, in revision{" "}
              {theirs.meta.revision}. This is what saving yours would change:
            </Text>
            <Paper style={{ maxHeight: "50vh", overflow: "auto" }}>
              {shown ? <Diff before={theirs.spec} after={shown} /> : <Loading what="the difference" />}
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
              {isStored ? "Go on with what is stored" : "Reload and lose mine"}
            </Button>
          )}
          {(theirs || deleted) && !isStored && (
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
