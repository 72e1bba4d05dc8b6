//! What the rules of a Policy say wrong.

use super::*;

#[test]
fn rules_that_are_refused() {
    let table: &[(&str, &[&str])] = &[
        ("effect: allow", &["15:5 `name` is missing"]),
        ("name: r", &["15:5 `effect` is missing"]),
        ("name: r, effect: permit", &["15:24 `permit` is no value of `effect`"]),
        ("name: r, effect: allow", &["15:5 `callers` is missing"]),
        ("name: r, effect: allow, callers: [agent]", &["15:5 `servers` is missing"]),
        (
            "name: r, effect: allow, callers: [agent], servers: [docs]",
            &["15:5 the rule does not say what it allows"],
        ),
        ("name: r, effect: allow, callers: [], servers: [docs], tools: [a]", &["15:40 `callers` is empty"]),
        ("name: r, effect: deny, callers: [agent], servers: []", &["15:57 `servers` is empty"]),
        ("name: r, effect: deny, callers: agent, servers: [docs]", &["15:39 a list belongs here"]),
        (
            "name: r, effect: deny, callers: [a.b.c], servers: [docs]",
            &["15:40 `a.b.c` has more than one `.`"],
        ),
        ("name: r, effect: deny, callers: [\"a?\"], servers: [docs]", &["15:40 `a?` has `?`"]),
        (
            "name: r, effect: deny, callers: [agent], servers: [dosc]",
            &["15:58 no Server has the App ID `dosc`"],
        ),
        ("name: R, effect: deny, callers: [agent], servers: [docs]", &["15:13 `R` is no valid"]),
    ];
    check(&owned(table, with_rule), refused);
    // What follows the beginning of a rule that is right so far, and the column after that beginning.
    type Row<'r> = (&'r str, &'r str, &'r [(usize, &'r str)]);
    let table: &[Row<'_>] = &[
        ("allow", "tools: []", &[(7, "`tools` is empty")]),
        ("allow", "toolz: [a]", &[(0, "unknown key `toolz`")]),
        ("allow", "tools: [\"a**\"]", &[(8, "`a**` has `**`")]),
        ("allow", "tools: [\"{a,b}\"]", &[(8, "`{a,b}` has `{`")]),
        ("allow", "tools: [a], tools: [b]", &[(12, "`tools` is given twice")]),
        ("allow", "tools: [a], prompts: [b]", &[(21, "`prompts` beside another kind")]),
        ("allow", "methods: [tools/call]", &[(10, "`tools/call` allows `tools/call` whatever it names")]),
        ("allow", "methods: [\"*/*\"]", &[(10, "`*/*` allows `tools/call`")]),
        ("allow", "methods: [\"prompts/*\"]", &[(10, "`prompts/*` allows `prompts/get`")]),
        ("allow", "server_requests: []", &[(17, "`server_requests` is empty")]),
        ("allow", "server_requests: [rots]", &[(18, "servers ask for nothing called `rots`")]),
        ("allow", "server_requests: [\"*\"]", &[(18, "servers ask for nothing called `*`")]),
        ("allow", "tools: [a], server_requests: [roots]", &[(29, "`server_requests` beside another kind")]),
        ("allow", "server_requests: [roots], list: true", &[(32, "what servers ask is in no list")]),
        (
            "allow",
            "server_requests: [roots], arguments: {}",
            &[(37, "only tools and prompts have arguments")],
        ),
        ("allow", "tools: [a], token: {}", &[(19, "`token` is designed")]),
        ("allow", "tools: [a], when: { rego: x }", &[(18, "`when` is designed")]),
        ("allow", "tools: [a], list: yes", &[(18, "neither `true` nor `false`")]),
        ("deny", "tools: [a], list: true", &[(18, "a deny rule lists nothing")]),
        ("deny", "tools: [a], arguments: {}", &[(23, "a deny rule without predicates")]),
        (
            "deny",
            "tools: [a], arguments: { a: {} }, other_arguments: deny",
            &[(51, "a deny rule matches on its predicates")],
        ),
        ("allow", "tools: [a], other_arguments: allow", &[(29, "without `arguments` any")]),
        ("allow", "resources: [a], arguments: {}", &[(27, "only tools and prompts have arguments")]),
        ("deny", "arguments: { a: { equals: 1 } }", &[(11, "only tools and prompts have arguments")]),
        ("allow", "tools: [a], arguments:", &[(21, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: }", &[(26, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: { within: } }", &[(36, "a value is missing")]),
        ("allow", "tools: [a], arguments: { a: { any: } }", &[(33, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: x }", &[(28, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: {}, a: {} }", &[(32, "`a` is given twice")]),
        ("allow", "tools: [a], arguments: { a: { equal: 1 } }", &[(30, "unknown key `equal`")]),
        (
            "allow",
            "tools: [a], arguments: { a: { equals: [1] } }",
            &[(30, "invalid type: sequence, expected a text")],
        ),
        (
            "allow",
            "tools: [a], arguments: { a: { equals: 9007199254740992 } }",
            &[(38, "9007199254740992 is beyond")],
        ),
        ("allow", "tools: [a], arguments: { a: { in: [] } }", &[(34, "`in` is empty")]),
        ("allow", "tools: [a], arguments: { a: { regex: \"(\" } }", &[(37, "`(` is no regular expression")]),
        (
            "allow",
            "tools: [a], arguments: { a: { regex: \"a)|(b\" } }",
            &[(37, "`a)|(b` is no regular expression")],
        ),
        ("allow", "tools: [a], arguments: { a: { within: srv } }", &[(38, "`srv` is no absolute path")]),
        (
            "allow",
            "tools: [a], arguments: { a: { within: /srv/../x } }",
            &[(38, "`/srv/../x` is no absolute path")],
        ),
        (
            "allow",
            "tools: [a], arguments: { a: { max: .nan } }",
            &[(35, "value `.nan` is not a finite number")],
        ),
        ("allow", "tools: [a], arguments: { a: { max: 1, min: 2 } }", &[(43, "`min` is above `max`")]),
        ("allow", "tools: [a], arguments: { a: { max: x } }", &[(35, "a number belongs here")]),
        (
            "allow",
            "tools: [a], arguments: { a: { max_length: -1 } }",
            &[(42, "a whole number, zero or more, belongs here")],
        ),
        (
            "allow",
            "tools: [a], arguments: { a: { max_length: forty } }",
            &[(42, "a whole number, zero or more")],
        ),
        ("allow", "tools: [a], arguments: { a: { type: text } }", &[(36, "`text` is no JSON type")]),
        ("allow", "tools: [a], arguments: { a: { any: { glob: \"**\" } } }", &[(43, "`**` has `**`")]),
        ("allow", "tools: [a], arguments: { /a~2: {} }", &[(25, "`/a~2` is no JSON Pointer")]),
        ("allow", "tools: [a], arguments: { \"\": {} }", &[(25, "an empty key names no argument")]),
    ];
    let rows = table.iter().map(|(effect, rest, expected)| {
        let beginning = format!("name: r, effect: {effect}, callers: [agent], servers: [docs], ");
        let place = |at: usize| if at == usize::MAX { 5 } else { 7 + beginning.len() + at };
        let errors = expected.iter().map(|(at, message)| format!("15:{} {message}", place(*at))).collect();
        (with_rule(&format!("{beginning}{rest}")), errors)
    });
    check(&rows.collect::<Vec<_>>(), refused);
    let twice = with_rule(
        "name: r, effect: deny, callers: [agent], servers: [docs] }, { name: r, effect: deny, callers: [agent], servers: [docs]",
    );
    check(&[(twice, vec!["15:75 another rule of this policy is called `r`".to_owned()])], refused);
}
