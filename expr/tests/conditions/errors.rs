use signalbox_expr::Condition;

fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        match Condition::parse(text) {
            Ok(_) => panic!("{text} is accepted"),
            Err(error) => assert_eq!(error.to_string(), *expected, "{text}"),
        }
    }
}

#[test]
fn errors_of_the_text_name_the_column() {
    check(&[
        ("", "column 1: a value is expected, not the end of the expression"),
        ("  ", "column 3: a value is expected, not the end of the expression"),
        ("true true", "column 6: \"true\" is not expected here"),
        ("(true", "column 6: \")\" is expected, not the end of the expression"),
        ("true ? false", "column 13: \":\" is expected, not the end of the expression"),
        ("request.path = \"a\"", "column 14: \"=\" is no operator; write \"==\""),
        ("true & true", "column 6: \"&\" is no operator; write \"&&\""),
        ("true | true", "column 6: \"|\" is no operator; write \"||\""),
        ("'é' == #", "column 8: '#' has no meaning here"),
        ("\"abc", "column 1: the text has no \" at its end"),
        (
            "\"a\nb\" == request.path",
            "line 1, column 3: a text with a line break needs three quotes at both ends",
        ),
        (
            "true &&\n  tru",
            "line 2, column 3: there is no \"tru\"; known are request, client, consumer, route, listener, time",
        ),
        (r#""\d" == "a""#, r#"column 2: "\d" is no escape; write "\\d", or r"…" for a text without escapes"#),
        (r#""\x4" == "a""#, "column 2: the escape needs 2 digits of a character"),
        (r#""\ud800" == "a""#, "column 2: the escape needs 4 digits of a character"),
        ("b\"a\" == b\"a\"", "column 1: bytes are not supported; write a text without the b"),
        ("1.5 > 1", "column 1: numbers with a fraction are not supported"),
        ("1u == 1u", "column 1: unsigned numbers are not supported; leave out the u"),
        ("99999999999999999999 > 1", "column 1: the number is too large"),
        ("9223372036854775808 > 1", "column 1: the number is too large"),
        ("1a > 1", "column 1: is not a number"),
        ("consumer == null", "column 13: null is not supported; use has()"),
        ("{} == 1", "column 1: maps are not supported"),
        ("[1 2]", "column 4: \",\" or \"]\" is expected, not 2"),
        ("request.", "column 8: the name of a field is expected, not the end of the expression"),
        ("in", "column 1: a value is expected, not \"in\""),
    ]);
}

#[test]
fn errors_of_types_name_the_column_and_what_is_expected() {
    check(&[
        ("request.path", "column 9: the condition must be bool, but is string"),
        ("request", "column 1: the condition must be bool, but is request"),
        ("request.headers", "column 9: the condition must be bool, but is the headers as a whole"),
        ("true && request.path", "column 17: an operand of && must be bool, but is string"),
        ("1 || true", "column 1: an operand of || must be bool, but is int"),
        ("!request.path", "column 10: the operand of ! must be bool, but is string"),
        (
            "request.path == 1",
            "column 14: both sides of a comparison must have one type; they are string and int",
        ),
        ("true < false", "column 6: values of type bool are not compared like this"),
        (
            r#"client.ip == "10.0.0.1""#,
            r#"column 11: an ip is not compared with a string; write ip("…") or inCidr(client.ip, "…")"#,
        ),
        ("consumer.groups == consumer.groups", "column 17: lists are not compared; write \"entry in list\""),
        ("request.query.a + 1 == 2", "column 17: this operator does not take string and int"),
        ("-request.path == 1", "column 10: the operand of - must be int or duration, but is string"),
        ("1 in [\"a\"]", "column 1: an entry of a list(string) must be string, but is int"),
        ("[1, \"a\"] == 1", "column 5: an entry of this list must be int, but is string"),
        ("[\"a\", 1] == 1", "column 7: an entry of this list must be string, but is int"),
        ("[true] == 1", "column 2: an entry of a list must be string or int, but is bool"),
        ("request.path in []", "column 17: the list is empty"),
        (
            "\"a\" in request.path",
            "column 16: the right side of \"in\" must be a list, request.headers or request.query, but is string",
        ),
        ("request.path in request.headers", "column 9: the name before \"in\" must be a literal text"),
        (
            "true ? 1 : \"a\"",
            "column 6: both results of ?: must be bool, string, int, timestamp or duration alike; they are int and string",
        ),
    ]);
}

#[test]
fn unknown_names_are_listed_with_those_that_there_are() {
    check(&[
        (
            "req.path == \"/\"",
            "column 1: there is no \"req\"; known are request, client, consumer, route, listener, time",
        ),
        (
            "request.url_path == \"/\"",
            "column 9: request has no field \"url_path\"; known are method, path, host, scheme, headers, query, size",
        ),
        ("request.path.length == 1", "column 14: a value of type string has no fields"),
        ("request.path[0] == \"/\"", "column 9: a value of type string has no entries"),
        (
            "consumer.groups[0] == \"a\"",
            "column 10: entries of lists have no numbers here; write \"entry in list\"",
        ),
        ("request.headers[\"a b\"] == \"\"", "column 17: \"a b\" is not the name of a header"),
        (
            "request.headers[request.path] == \"\"",
            "column 25: the name in the brackets must be a literal text",
        ),
        (
            "consumer.groups.exists(g, g == \"a\")",
            "column 17: macros over lists are not supported; write \"entry in list\"",
        ),
        (
            "consumer.groups.all(g, g == \"a\")",
            "column 17: there is no method \"all\" with these arguments; known are has(field), size(text), int(text), ip(\"…\"), inCidr(ip, \"…\"), timestamp(\"…\"), duration(\"…\"), text.startsWith(text), endsWith, contains, matches(\"…\"), lowerAscii(), request.headers.all(\"…\"), request.query.all(\"…\"), time.getHours() and its kind",
        ),
        ("has(consumer)", "column 5: has() takes a field; write has(consumer.name)"),
        ("has(request.headers[\"a\"])", "column 20: has() takes a field; write \"name\" in request.headers"),
        ("has(request.path)", "column 13: \"path\" is always there"),
    ]);
}

#[test]
fn arguments_are_checked_where_they_are_written() {
    check(&[
        ("request.path.startsWith(1)", "column 25: the argument of startsWith() must be string, but is int"),
        ("request.size.contains(\"a\")", "column 9: the text of contains must be string, but is int"),
        ("request.path.matches(request.path)", "column 30: matches() takes a literal text"),
        ("request.path.matches(\"(\")", "column 22: is not a regular expression: unclosed group"),
        (
            r#"request.path.matches(r"(a)\1")"#,
            "column 22: is not a regular expression: backreferences are not supported",
        ),
        (r#"request.path.matches(r"\bb")"#, r"column 22: \b of Unicode is not supported; write (?-u:\b)"),
        (
            r#"request.path.matches("(a|b)*a(a|b){30}")"#,
            "column 22: the pattern is too complex: it compiles to more than 256 KiB; classes like \\w are smaller as (?-u:\\w)",
        ),
        (
            "inCidr(client.ip, \"10.0.0.1/8\")",
            "column 19: \"10.0.0.1/8\" has bits beyond its prefix; write 10.0.0.0/8",
        ),
        (
            "inCidr(client.ip, [\"10.0.0.0/8\", \"moon\"])",
            "column 34: \"moon\" is not a range of addresses; write 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "inCidr(client.ip, \"::ffff:10.0.0.0/104\")",
            "column 19: \"::ffff:10.0.0.0/104\" must be written as IPv4 addresses",
        ),
        (
            "inCidr(request.path, \"10.0.0.0/8\")",
            "column 16: the first argument of inCidr() must be ip, but is string",
        ),
        ("client.ip == ip(\"10.0.0\")", "column 17: is not an IP address"),
        (
            "time > timestamp(\"now\")",
            "column 18: is not a timestamp from 1678 to 2261; write 2026-01-31T12:00:00Z",
        ),
        ("time - time > duration(\"1 h\")", "column 24: is not a duration; write 1h30m, 10s or 500ms"),
        (
            "time.getHours(\"Europe/Berlin\") == 1",
            "column 15: is not an offset from UTC; write +02:00. Names of zones are not supported",
        ),
        (
            "request.path.getHours() == 1",
            "column 9: the left side of getHours() must be timestamp, but is string",
        ),
    ]);
}

#[test]
fn what_could_take_too_long_is_refused() {
    let cost = |text: &str| Condition::parse(text).map(|condition| condition.cost());
    let one = cost(r#"request.path.matches("a")"#).unwrap();
    assert!((50_000..100_000).contains(&one), "{one}");
    assert!(cost(r#"request.method == "GET""#).unwrap() < 10_000);
    let many = vec![r#"request.path.matches("a")"#; 16].join(" && ");
    let error = cost(&many).unwrap_err().to_string();
    assert!(error.contains("steps for a request; at most 1000000. This part takes most"), "{error}");
    let many = (0..17).map(|n| format!("\"a\".matches(\"{n}\")")).collect::<Vec<_>>().join(" || ");
    let error = cost(&many).unwrap_err();
    assert_eq!(error.message, "the expression has more than 16 regular expressions; join some with |");
    // A text that is put together is as long as its parts.
    let joined = vec!["request.path"; 16].join(" + ");
    assert!(cost(&format!(r#"({joined}).contains("a")"#)).is_err());
}
