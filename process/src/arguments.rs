//! Arguments: from the command line, else from the environment, else from a file of flags.
//!
//! An empty value, or one of white space, is as if the argument were absent, wherever it comes from: a variable that a
//! deployment leaves empty must not become an empty token. That is decided here for every argument of a [`Command`], by
//! making one command line of the three sources before clap parses it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Command, Parser};

/// Parses the arguments of this process; ends it with a message when they are wrong.
pub fn parse<A: Parser>() -> A {
    match parse_from(std::env::args_os().collect(), &|name| std::env::var_os(name)) {
        Ok(args) => args,
        Err(error) => error.exit(),
    }
}

/// Parses `arguments`, the first of which is the program's name, with the variables of `environment`.
pub fn parse_from<A: Parser>(
    arguments: Vec<OsString>,
    environment: &dyn Fn(&OsStr) -> Option<OsString>,
) -> Result<A, clap::Error> {
    let mut command = A::command();
    let sources = Sources::read(&command, arguments, environment)
        .map_err(|reason| command.error(ErrorKind::ValueValidation, reason))?;
    // The help shows the variables.
    if !sources.asks_for_help() {
        command = command.mut_args(|argument| argument.env(None));
    }
    let mut usage = command.clone();
    let parsed =
        command.try_get_matches_from(&sources.line).and_then(|matches| A::from_arg_matches(&matches));
    parsed.map_err(|error| sources.explain(error.format(&mut usage), &mut usage))
}

/// One command line made of all sources.
struct Sources {
    line: Vec<OsString>,
    /// Name of a flag to where it comes from, if that is not the command line.
    origins: BTreeMap<String, String>,
}

impl Sources {
    fn read(
        command: &Command,
        arguments: Vec<OsString>,
        environment: &dyn Fn(&OsStr) -> Option<OsString>,
    ) -> Result<Self, String> {
        let (given, present) = without_empty(command, arguments);
        let mut sources = Self { line: given, origins: BTreeMap::new() };
        let mut more = Vec::new();
        let mut from_environment = BTreeMap::new();
        for argument in command.get_arguments() {
            let (Some(name), Some(variable)) = (argument.get_long(), argument.get_env()) else { continue };
            if let Some(value) = environment(variable).filter(|value| !is_empty(value)) {
                from_environment.insert(name.to_owned(), value.clone());
                if !present.contains_key(name) {
                    let origin = format!("the environment variable {}", variable.display());
                    more.extend(flag(argument, &value).map_err(|reason| format!("{origin}: {reason}"))?);
                    sources.origins.insert(name.to_owned(), origin);
                }
            }
        }
        let file = present.get(FLAGS_FILE).or_else(|| from_environment.get(FLAGS_FILE));
        if let Some(file) = file {
            let file = PathBuf::from(file);
            for (name, values) in read_file(&file)? {
                let origin = |line: usize| format!("{}, line {line}", file.display());
                let first = values.first().map_or(0, |value| value.line);
                let known = command.get_arguments().find(|argument| argument.get_long() == Some(&name));
                let known = known.filter(|argument| argument.get_env().is_some() && name != FLAGS_FILE);
                let argument = known.ok_or_else(|| {
                    format!("{}: {name:?} is not a flag that a file can set", origin(first))
                })?;
                if let Some(second) =
                    values.get(1).filter(|_| !matches!(argument.get_action(), ArgAction::Append))
                {
                    return Err(format!("{}: {name} was already set in line {first}", origin(second.line)));
                }
                if present.contains_key(&name) || from_environment.contains_key(&name) {
                    continue;
                }
                for value in values.iter().filter(|value| !value.text.trim().is_empty()) {
                    let flag = flag(argument, OsStr::new(&value.text));
                    more.extend(flag.map_err(|reason| format!("{}: {reason}", origin(value.line)))?);
                    sources.origins.insert(name.clone(), origin(value.line));
                }
            }
        }
        let after_program = sources.line.len().min(1);
        sources.line.splice(after_program..after_program, more);
        Ok(sources)
    }

    fn asks_for_help(&self) -> bool {
        self.line.iter().any(|argument| argument == "--help" || argument == "-h")
    }

    /// Adds to an error of clap where the argument comes from.
    fn explain(&self, error: clap::Error, command: &mut Command) -> clap::Error {
        let about = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        let named = self.origins.iter().find(|(name, _)| {
            about.split([' ', ',', '=']).any(|word| word.strip_prefix("--") == Some(name.as_str()))
        });
        let Some((name, origin)) = named else { return error };
        let text = error.to_string();
        let reason = text.strip_prefix("error: ").unwrap_or(&text);
        let reason = reason.split("\n\n").next().unwrap_or(reason);
        command.error(error.kind(), format!("{reason}\n  --{name} comes from {origin}"))
    }
}

/// The command line without flags whose value is empty, and the values of those that stay.
fn without_empty(command: &Command, arguments: Vec<OsString>) -> (Vec<OsString>, BTreeMap<String, OsString>) {
    let mut kept = Vec::with_capacity(arguments.len());
    let mut present = BTreeMap::new();
    let mut arguments = arguments.into_iter();
    kept.extend(arguments.next());
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            kept.push(argument);
            kept.extend(arguments);
            break;
        }
        let text = argument.to_str().and_then(|text| text.strip_prefix("--"));
        let (name, value) =
            match text.map(|text| text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v)))) {
                Some((name, value)) => (name.to_owned(), value.map(OsString::from)),
                None => {
                    kept.push(argument);
                    continue;
                }
            };
        let known = command.get_arguments().find(|known| known.get_long() == Some(&name));
        match (known, value) {
            (Some(known), Some(value)) if takes_value(known) && is_empty(&value) => {}
            (Some(known), None) if takes_value(known) => match arguments.next() {
                Some(value) if is_empty(&value) => {}
                Some(value) => {
                    present.insert(name, value.clone());
                    kept.extend([argument, value]);
                }
                // clap says that it lacks a value.
                None => kept.push(argument),
            },
            (_, value) => {
                present.insert(name, value.unwrap_or_default());
                kept.push(argument);
            }
        }
    }
    (kept, present)
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

fn is_empty(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| text.trim().is_empty())
}

/// `--name=value`; for a switch `--name`, if the value says so.
fn flag(argument: &Arg, value: &OsStr) -> Result<Option<OsString>, String> {
    let mut flag = OsString::from("--");
    flag.push(argument.get_long().unwrap_or_default());
    if takes_value(argument) {
        flag.push("=");
        flag.push(value);
        return Ok(Some(flag));
    }
    match value.to_str().map(|text| text.trim().to_ascii_lowercase()).as_deref() {
        Some("true" | "1" | "yes" | "on") => Ok(Some(flag)),
        Some("false" | "0" | "no" | "off") => Ok(None),
        _ => Err(format!("{value:?} is neither true nor false")),
    }
}

/// A value in a file of flags.
#[derive(Debug, PartialEq, Eq)]
struct Value {
    text: String,
    /// Counted from 1.
    line: usize,
}

fn read_file(path: &Path) -> Result<BTreeMap<String, Vec<Value>>, String> {
    let failed = |reason: &dyn std::fmt::Display| format!("--{FLAGS_FILE} {}: {reason}", path.display());
    let size = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
    if size > MAX_FILE {
        return Err(failed(&format_args!("it has {size} bytes; at most {MAX_FILE} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    parse_file(&text).map_err(|reason| failed(&reason))
}

/// Parses lines of `name = value`. A value is the rest of its line, or quoted as in TOML; `#` begins a comment at the
/// beginning of a line and behind white space.
fn parse_file(text: &str) -> Result<BTreeMap<String, Vec<Value>>, String> {
    let mut flags = BTreeMap::<String, Vec<Value>>::new();
    for (index, content) in text.lines().enumerate() {
        let line = index + 1;
        let content = content.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (name, value) =
            content.split_once('=').ok_or_else(|| format!("line {line} is not `name = value`"))?;
        let texts = parse_values(value.trim()).map_err(|reason| format!("line {line}: {reason}"))?;
        let values = texts.into_iter().map(|text| Value { text, line });
        flags.entry(name.trim().to_owned()).or_default().extend(values);
    }
    Ok(flags)
}

/// The values of a line: one, or those of a TOML array.
fn parse_values(text: &str) -> Result<Vec<String>, String> {
    let Some(mut rest) = text.strip_prefix('[') else {
        let (value, rest) = parse_value(text, &[])?;
        return if rest.is_empty() { Ok(vec![value]) } else { Err(format!("{rest:?} follows the value")) };
    };
    let mut values = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix(']') {
            let rest = uncommented(rest).trim();
            return if rest.is_empty() { Ok(values) } else { Err(format!("{rest:?} follows the list")) };
        }
        if rest.is_empty() {
            return Err("the list has no end: it must be on one line".to_owned());
        }
        let (value, after) = parse_value(rest, &[',', ']'])?;
        values.push(value);
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// A value and what follows it. One without quotes ends before a comment, or at one of `ends`.
fn parse_value<'t>(text: &'t str, ends: &[char]) -> Result<(String, &'t str), String> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''));
    let Some(quote) = quote else {
        let end = text.find(ends).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Ok((uncommented(value).trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' if quote == '"' => match characters.next() {
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => {
                    return Err(
                        "a backslash in double quotes stands only before \\ and \"; use single quotes"
                            .to_owned(),
                    );
                }
            },
            _ if character == quote => {
                let rest = text.get(index + 1..).unwrap_or_default();
                let rest = if ends.is_empty() { uncommented(rest).trim() } else { rest };
                return Ok((value, rest));
            }
            _ => value.push(character),
        }
    }
    Err(format!("the value has no closing {quote}"))
}

/// `text` up to a `#` at its beginning or behind white space.
fn uncommented(text: &str) -> &str {
    let mut before = ' ';
    for (index, character) in text.char_indices() {
        if character == '#' && before.is_whitespace() {
            return text.get(..index).unwrap_or(text);
        }
        before = character;
    }
    text
}

const FLAGS_FILE: &str = "flags-file";

/// Bytes.
const MAX_FILE: u64 = 1 << 20;

/// A command that has every flag of `A` set to an empty value, by each source, parses as if none were given: returns the
/// flags that do not. For the tests of the programs.
pub fn empty_values_that_count<A: Parser + std::fmt::Debug>() -> Vec<String> {
    let none = |_: &OsStr| None;
    let parse = |line: &[&str], environment: &dyn Fn(&OsStr) -> Option<OsString>| {
        let line = std::iter::once("program").chain(line.iter().copied()).map(OsString::from).collect();
        parse_from::<A>(line, environment).map(|args| format!("{args:?}")).map_err(|error| error.to_string())
    };
    let expected = parse(&[], &none);
    let mut wrong = Vec::new();
    for argument in A::command().get_arguments() {
        let Some(name) = argument.get_long().filter(|_| takes_value(argument)) else { continue };
        let (flag, joined) = (format!("--{name}"), format!("--{name}="));
        for line in [&[&*flag, ""][..], &[&*flag, " "], &[&*joined], &[&*joined, &*flag, ""]] {
            if parse(line, &none) != expected {
                wrong.push(format!("{line:?}"));
            }
        }
        let Some(variable) = argument.get_env() else {
            wrong.push(format!("{flag} has no environment variable"));
            continue;
        };
        for empty in ["", " ", "\n"] {
            let environment = |asked: &OsStr| (asked == variable).then(|| OsString::from(empty));
            if parse(&[], &environment) != expected {
                wrong.push(format!("{}={empty:?}", variable.display()));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[derive(Debug, Parser)]
    struct Args {
        #[arg(long, env = "T_TOKEN")]
        token: Option<String>,
        #[arg(long, env = "T_LABEL", value_delimiter = ',')]
        label: Vec<String>,
        #[arg(long, env = "T_SIZE", default_value = "7")]
        size: u32,
        #[arg(long, env = "T_EPOCH", action = ArgAction::SetTrue)]
        epoch: bool,
        #[arg(long)]
        print: bool,
        #[arg(long, env = "T_FLAGS_FILE")]
        flags_file: Option<PathBuf>,
    }

    fn parse(line: &[&str], environment: &[(&str, &str)]) -> Result<Args, String> {
        let line = std::iter::once("program").chain(line.iter().copied()).map(OsString::from).collect();
        let environment = |asked: &OsStr| {
            environment.iter().find(|(name, _)| asked == *name).map(|(_, value)| OsString::from(value))
        };
        parse_from(line, &environment).map_err(|error| error.to_string())
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn an_empty_value_is_as_if_absent() {
        assert_eq!(empty_values_that_count::<Args>(), Vec::<String>::new());
        let args = parse(&["--token=", "--size", ""], &[("T_TOKEN", "from-env")]).unwrap();
        assert_eq!((args.token.as_deref(), args.size), (Some("from-env"), 7));
        assert_eq!(parse(&["--token", "", "--print"], &[]).unwrap().token, None);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = file("token = file\nsize = 1\nlabel = a\nlabel = b\nepoch = true\n");
        let path = file.path().to_str().unwrap();
        let args =
            parse(&["--token=flag"], &[("T_FLAGS_FILE", path), ("T_SIZE", "2"), ("T_TOKEN", "env")]).unwrap();
        assert_eq!((args.token.as_deref(), args.size, args.epoch), (Some("flag"), 2, true));
        assert_eq!(args.label, ["a", "b"]);
        let args = parse(&["--flags-file", path, "--label=c"], &[("T_EPOCH", "false")]).unwrap();
        assert_eq!((args.token.as_deref(), args.size, args.epoch), (Some("file"), 1, false));
        assert_eq!(args.label, ["c"]);
    }

    #[test]
    fn a_file_of_flags_is_read_like_toml_or_without_quotes() {
        let text = "# a comment\n\n token = a#b # and more\nlabel = [\"x\", 'y\\', \"a\\\"b\"] # three\nsize = \"3\"";
        let file = file(text);
        let args = parse(&["--flags-file", file.path().to_str().unwrap()], &[]).unwrap();
        assert_eq!((args.token.as_deref(), args.size), (Some("a#b"), 3));
        assert_eq!(args.label, ["x", "y\\", "a\"b"]);
    }

    #[test]
    fn what_is_wrong_in_a_file_of_flags_is_named_with_its_line() {
        for (text, expected) in [
            ("size = 1\nnonsense = 2", "line 2: \"nonsense\" is not a flag that a file can set"),
            ("flags-file = x", "line 1: \"flags-file\" is not a flag"),
            ("print = true", "line 1: \"print\" is not a flag"),
            ("size = 1\nsize = 2", "line 2: size was already set in line 1"),
            ("size", "line 1 is not `name = value`"),
            ("size = \"1", "line 1: the value has no closing \""),
            ("size = \"1\" 2", "line 1: \"2\" follows the value"),
            ("label = [\"1\"", "line 1: the list has no end"),
            ("epoch = perhaps", "line 1: \"perhaps\" is neither true nor false"),
            ("size = x", "--size comes from"),
        ] {
            let file = file(text);
            let error = parse(&["--flags-file", file.path().to_str().unwrap()], &[]).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        assert!(parse(&["--flags-file=/does/not/exist"], &[]).unwrap_err().contains("/does/not/exist"));
    }

    #[test]
    fn an_error_names_the_variable_that_it_comes_from() {
        let error = parse(&[], &[("T_SIZE", "many")]).unwrap_err();
        assert!(error.contains("many") && error.contains("T_SIZE"), "{error}");
        let error = parse(&[], &[("T_EPOCH", "2")]).unwrap_err();
        assert!(error.contains("T_EPOCH") && error.contains("neither true nor false"), "{error}");
    }
}
