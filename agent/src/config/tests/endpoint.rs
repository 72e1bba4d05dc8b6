//! Dapr's HTTPEndpoint, and what an external server is shown.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{CertificateParams, KeyPair};
use toolgate_core::decision::ClientCertificate;

use super::*;

/// A certificate that signs itself, and its key, in PEM.
fn made() -> [String; 2] {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["client".to_owned()]).unwrap().self_signed(&key).unwrap();
    [certificate.pem(), key.serialize_pem()]
}

/// A text in a flow mapping.
fn quoted(pem: &str) -> String {
    format!("{{ value: {pem:?} }}")
}

fn endpoint(spec: &str) -> String {
    format!("apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {{ name: api }}\nspec: {spec}\n")
}

#[test]
fn an_endpoint_is_an_external_server_with_all_that_it_says() {
    for (url, path, base) in [
        ("https://api.example.com:8443", "/mcp", ""),
        ("https://api.example.com:8443/", "/mcp", ""),
        ("https://api.example.com:8443/v1/tools/", "/v1/tools/mcp", "/v1/tools"),
    ] {
        let resources = compile(&endpoint(&format!("{{ baseUrl: \"{url}\" }}"))).unwrap();
        let server = &resources.servers[0];
        let external = server.external().unwrap();
        assert_eq!((server.identity.app_id(), &*server.path, &*external.base), ("api", path, base), "{url}");
        assert_eq!(external.to_string(), "https://api.example.com:8443");
    }
    let ([certificate, key], [root, _]) = (made(), made());
    let spec = format!(
        "{{ baseUrl: \"https://api.example.com\", headers: [{{ name: X-Key, value: Bearer abc }}, {{ name: X-Count, value: 7 }}], \
         clientTLS: {{ rootCA: {}, certificate: {}, privateKey: {}, renegotiation: Never }} }}",
        quoted(&root),
        quoted(&certificate),
        quoted(&key)
    );
    let resources = compile(&endpoint(&spec)).unwrap();
    let external = resources.servers[0].external().unwrap();
    assert_eq!(external.own_headers.iter().map(|one| one.name()).collect::<Vec<_>>(), ["X-Key", "X-Count"]);
    let proof = external.tls.as_ref().unwrap();
    assert!(proof.roots.is_some() && proof.shown.is_some(), "{proof:?}");
    let explained = explain(&AgentConfig::default(), &resources);
    let said = "proven by the certificates that it names alone, shown a certificate if it asks for one, \
                with X-Key and X-Count in every request";
    assert!(explained.contains(said), "{explained}");
    // What proves who the agent is stands in nothing that is shown.
    let shown = format!("{resources:?} {explained}");
    assert!(!shown.contains("Bearer abc"), "{shown}");
}

#[test]
fn endpoints_that_are_refused() {
    let table: &[(&str, &[&str])] = &[
        ("{}", &["3:19 `baseUrl` is missing"]),
        ("{ baseUrl: api.example.com }", &["4:18 `api.example.com` is no URL of a server"]),
        ("{ baseUrl: \"https://api.example.com/a?b=c\" }", &["4:18 `/a?b=c` is no path as requests have it"]),
        (
            "{ baseUrl: \"https://api.example.com/a/../b\" }",
            &["4:18 `/a/../b` is no path as requests have it"],
        ),
        ("{ baseUrl: \"https://api.example.com//\" }", &["4:18 `//` is no path as requests have it"]),
        ("{ baseUrl: \"https://127.0.0.1\" }", &["4:18 `127.0.0.1` is no public address"]),
        ("{ url: \"https://api.example.com\" }", &["4:9 unknown key `url`"]),
        (
            "{ baseUrl: \"https://a.example\" }\nscopes: [reader]",
            &["5:9 `scopes` is not read: who may call is said by Policies alone"],
        ),
        (
            "{ baseUrl: \"https://a.example\" }\nauth: { secretStore: vault }",
            &["5:7 `auth` is designed but not built yet"],
        ),
        (
            "{ baseUrl: \"http://a.example\", clientTLS: {} }",
            &["4:49 `clientTLS` says nothing where the `baseUrl` is `http`"],
        ),
        (
            "\n  baseUrl: \"https://a.example\"\n  clientTLS:\n    rootCA: { value: x }\n    certificate: { secretKeyRef: { name: a, key: b } }\n    privateKey: {}\n    renegotiation: OnceAsClient",
            &[
                "7:13 there is no certificate in it",
                "8:34 `secretKeyRef` is designed but not built yet",
                "9:17 `value` is missing",
                "10:20 `OnceAsClient`: no TLS is negotiated anew here",
            ],
        ),
        (
            "{ baseUrl: \"https://a.example\", clientTLS: { certificate: { value: x } } }",
            &["4:65 `certificate` says nothing without `privateKey`"],
        ),
        (
            "{ baseUrl: \"https://a.example\", clientTLS: { certificate: { value: x }, privateKey: { value: y } } }",
            &["4:65 there is no certificate in it"],
        ),
    ];
    check(&owned(table, endpoint), refused);
    let ours = endpoint("{ baseUrl: \"https://a.example\" }").replace("dapr.io/v1alpha1", "toolgate/v1");
    check(&[(ours, vec!["1:13 no version `toolgate/v1` of `HTTPEndpoint`".to_owned()])], refused);
}

#[test]
fn headers_of_endpoints_that_are_refused() {
    let agents = "cannot be added: it is the agent's to write";
    let names = [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "proxy-authorization",
        "Forwarded",
        "X-Forwarded-For",
        "x_forwarded_for",
        "X-Toolgate-Caller",
        "dapr-caller-app-id",
        "Content-Type",
        "Mcp-Session-Id",
        "mcp-other",
        "mcp_session_id",
        "Last-Event-ID",
        "traceparent",
        "Accept-Encoding",
    ];
    let with =
        |headers: &str| endpoint(&format!("{{ baseUrl: \"https://a.example\", headers: [{headers}] }}"));
    for name in names {
        let text = with(&format!("{{ name: {name}, value: a }}"));
        check(&[(text, vec![format!("4:57 `{name}` {agents}")])], refused);
    }
    let table: &[(&str, &[&str])] = &[
        ("{ name: a }", &["4:49 a header is a `name` and a `value`"]),
        ("{ value: a }", &["4:49 a header is a `name` and a `value`"]),
        ("{ name: \"a b\", value: a }", &["4:57 `a b` cannot be added: it is no name of a header"]),
        ("{ name: a, value: \"\" }", &["4:57 `a` cannot be added: its value is empty"]),
        ("{ name: a, value: \"b\\r\\nHost: c\" }", &["4:57 `a` cannot be added: its value is empty, or has"]),
        ("{ name: a, value: \" b\" }", &["4:57 `a` cannot be added: its value is empty, or has"]),
        ("{ name: A-b, value: c }, { name: a_B, value: d }", &["4:82 `a_B` is given twice"]),
        (
            "{ name: a, secretKeyRef: { name: b, key: c } }",
            &["4:74 `secretKeyRef` is designed but not built yet"],
        ),
        ("{ name: a, envRef: B }", &["4:68 `envRef` is designed but not built yet"]),
        ("{ name: a, valeu: B }", &["4:60 unknown key `valeu`"]),
    ];
    check(&owned(table, with), refused);
    let many: Vec<String> = (0..33).map(|at| format!("{{ name: a{at}, value: b }}")).collect();
    check(&[(with(&many.join(", ")), vec!["4:48 at most 32 headers".to_owned()])], refused);
    let long = format!("{{ name: a, value: {} }}", "b".repeat(8192));
    check(&[(with(&long), vec!["4:48 at most 32 headers, of 8192 bytes in all".to_owned()])], refused);
}

#[test]
fn what_is_said_of_a_secret_does_not_show_it() {
    let ([certificate, key], [_, other]) = (made(), made());
    let private = |key: &str| {
        format!(
            "{{ baseUrl: \"https://a.example\", clientTLS: {{ certificate: {}, privateKey: {} }} }}",
            quoted(&certificate),
            quoted(key)
        )
    };
    let headers = |list: &str| format!("{{ baseUrl: \"https://a.example\", headers: [{list}] }}");
    let tls = |tls: &str| format!("{{ baseUrl: \"https://a.example\", clientTLS: {tls} }}");
    let cases = [
        (private(&other), 0o600, "it is not the key of the certificate"),
        (private("s3cret"), 0o600, "it is no key"),
        (private(&key), 0o640, "others may get at this key (mode 0640 of `x.yaml`)"),
        (headers("{ name: Host, value: s3cret }"), 0o600, "`Host` cannot be added"),
        (headers("{ name: X, value: \" s3cret\" }"), 0o600, "`X` cannot be added"),
        (headers("{ name: X, valu: s3cret }"), 0o600, "unknown key `valu`"),
        (headers("{ name: X, value: [s3cret] }"), 0o600, "one text belongs here"),
        (headers("s3cret"), 0o600, "keys and values belong here"),
        (headers("{ name: X, value: s3cret"), 0o600, "mismatched bracket"),
        (tls("{ privateKey: { value: s3cret } }"), 0o600, "`privateKey` says nothing without `certificate`"),
        (tls("{ privateKey: s3cret }"), 0o600, "keys and values belong here"),
        (tls("{ renegotiation: Freely, rootCA: { value: s3cret } }"), 0o600, "`Freely`: no TLS"),
    ];
    for (spec, mode, expected) in cases {
        let source = Source { mode, ..source(&endpoint(&spec)) };
        let findings =
            resources::compile(&[source], &AgentConfig::default(), Findings::default()).unwrap_err();
        let shown = findings.iter().map(ToString::to_string).collect::<String>();
        assert!(shown.contains(expected), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("PRIVATE"), "{shown}");
    }
}

/// A Server that names these files, with that mode of the key's.
fn with_files(dir: &Path, certificate: &str, key: &str, mode: u32) -> Result<Resources, Vec<Diagnostic>> {
    let at = |name: &str| dir.join(name).display().to_string();
    std::fs::write(at("client.pem"), certificate).unwrap();
    std::fs::write(at("client.key"), key).unwrap();
    std::fs::set_permissions(at("client.key"), std::fs::Permissions::from_mode(mode)).unwrap();
    compile(&format!(
        "{HEAD}Server\nmetadata: {{ name: s }}\nspec: {{ external: {{ url: \"https://a.example/mcp\", certificate_file: {}, key_file: {} }} }}\n",
        at("client.pem"),
        at("client.key")
    ))
}

#[test]
fn a_server_names_the_files_of_what_it_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let ([certificate, key], [root, other]) = (made(), made());
    let resources = with_files(dir.path(), &(certificate.clone() + &root), &key, 0o600).unwrap();
    let shown = resources.servers[0].external().and_then(|external| external.tls.as_ref()?.shown.clone());
    let ClientCertificate { chain, .. } = &*shown.unwrap();
    assert_eq!(chain.len(), 2);
    for (certificate, key, mode, expected) in [
        (&certificate, &other, 0o600, "it is not the key of the certificate"),
        (&certificate, &key[..40].to_owned(), 0o600, "it is no key"),
        (&certificate, &key, 0o604, "others may get at this key (mode 0604"),
        (&key, &key, 0o600, "there is no certificate in it"),
    ] {
        let findings = with_files(dir.path(), certificate, key, mode).unwrap_err();
        let found = shown_errors(&findings);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
    }
}

fn shown_errors(findings: &[Diagnostic]) -> Vec<String> {
    shown(findings, Severity::Error)
}
