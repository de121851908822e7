import {
  createContext,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useMemo,
  useRef,
  useState,
} from "react";
import { getAt, isBelow, type Json, type JsonObject, setAt } from "../lib/json";

export type FieldError = { field: string; message: string };

/**
 * A form over one specification. The specification itself is the state: each field reads and writes it at its path,
 * so the form and the raw text are two views of the same value, and what a form does not know survives.
 */
export type SpecForm = {
  spec: JsonObject;
  replace: (spec: JsonObject) => void;
  set: (path: string, value: Json | undefined) => void;
  errors: FieldError[];
  setErrors: (errors: FieldError[]) => void;
  /** The errors that no field on the screen shows. */
  unplaced: FieldError[];
  register: (path: string) => () => void;
  /** The stored specification; `undefined` if the resource is new. */
  stored: JsonObject | undefined;
};

export function useSpecForm(initial: JsonObject, stored: JsonObject | undefined): SpecForm {
  const [spec, setSpec] = useState(initial);
  const [errors, setErrors] = useState<FieldError[]>([]);
  // The number of fields that show the errors of each path.
  const [shown, setShown] = useState<ReadonlyMap<string, number>>(new Map());
  const set = useCallback((path: string, value: Json | undefined) => {
    setSpec((spec) => setAt(spec, path, value));
    setErrors((errors) => {
      const left = errors.filter((error) => error.field !== path && !isBelow(error.field, path));
      return left.length === errors.length ? errors : left;
    });
  }, []);
  const replace = useCallback((spec: JsonObject) => setSpec(spec), []);
  const register = useCallback((path: string) => {
    const add = (by: number) =>
      setShown((shown) => {
        const next = new Map(shown);
        next.set(path, (shown.get(path) ?? 0) + by);
        return next;
      });
    add(1);
    return () => add(-1);
  }, []);
  return useMemo(() => {
    const isShown = (error: FieldError) =>
      [...shown].some(([path, count]) => {
        if (count === 0) return false;
        return path.endsWith("*") ? isAtOrBelow(error.field, path.slice(0, -1)) : path === error.field;
      });
    const unplaced = errors.filter((error) => !isShown(error));
    return { spec, replace, set, errors, setErrors, unplaced, register, stored };
  }, [spec, errors, shown, replace, set, register, stored]);
}

const FormContext = createContext<SpecForm | null>(null);

export function FormProvider({ form, children }: { form: SpecForm; children: ReactNode }) {
  return <FormContext value={form}>{children}</FormContext>;
}

export function useForm(): SpecForm {
  const form = useContext(FormContext);
  if (form === null) throw new Error("a field stands outside of a form");
  return form;
}

export type Field = {
  value: Json | undefined;
  set: (value: Json | undefined) => void;
  /** The field's error, for the `error` of its input. */
  error: string | undefined;
  path: string;
};

/** The value at `path`. With `deep`, the field also shows what is wrong with anything below its path. */
export function useField(path: string, deep = false): Field {
  const { spec, set, errors, register } = useForm();
  useEffect(() => register(deep ? `${path}*` : path), [register, path, deep]);
  const own = errors.filter((error) => (deep ? isAtOrBelow(error.field, path) : error.field === path));
  const text = own
    .map((error) =>
      error.field === path ? error.message : `${error.field.slice(path.length)}: ${error.message}`,
    )
    .join("; ");
  return {
    value: getAt(spec, path),
    set: (value) => set(path, value),
    error: text === "" ? undefined : text,
    path,
  };
}

/**
 * Brings the first field with an error into view and focuses it, or else what says why the save failed: once for each
 * `failure`, which is a new object every time.
 */
export function useFocusFailure(failure: object | null) {
  const ref = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (failure === null) return;
    const target =
      ref.current?.querySelector<HTMLElement>("[aria-invalid=true], [data-field-error]") ??
      ref.current?.querySelector<HTMLElement>("[data-error-summary]");
    target?.focus({ preventScroll: true });
    target?.scrollIntoView({ block: "center" });
  }, [failure]);
  return ref;
}

function isAtOrBelow(path: string, base: string): boolean {
  return path === base || isBelow(path, base);
}
