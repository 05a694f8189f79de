//! Kubeconfigs: which are taken, and which are refused; and the rights that the shipped manifest gives.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};

use super::api::{Api, Does, list, service};
use super::{Source, TIMES};

/// For an API that is not encrypted.
pub(super) fn plain(api: &Api) -> Value {
    with(&json!({"server": format!("http://{}", api.address)}), &json!({"token": "secret"}))
}

/// One that has this cluster and this user.
fn with(cluster: &Value, user: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "here",
        "contexts": [
            {"name": "elsewhere", "context": {"cluster": "none", "user": "other"}},
            {"name": "here", "context": {"cluster": "node", "user": "podsecd-u7s"}},
        ],
        "clusters": [{"name": "node", "cluster": cluster}],
        "users": [{"name": "other", "user": {"exec": {"command": "/bin/false"}}}, {"name": "podsecd-u7s", "user": user}],
    })
}

/// Writes it (JSON is YAML) where it can be trusted, as a whole.
pub(super) fn write(directory: &Path, kubeconfig: &Value) -> PathBuf {
    let path = directory.join("kubeconfig");
    fs::write(directory.join("new"), kubeconfig.to_string()).expect("written");
    fs::set_permissions(directory.join("new"), Permissions::from_mode(0o600)).expect("changed");
    fs::rename(directory.join("new"), &path).expect("renamed");
    path
}

fn serves() -> impl Fn(&super::api::Asked, usize) -> Vec<Does> + Send + Sync + 'static {
    |asked, _| match asked.is_watch() {
        false => vec![list(10, &[service("web", 5, 30080)])],
        true => vec![Does::Begins, Does::Stays],
    }
}

#[tokio::test]
async fn what_would_run_programs_or_trust_anybody_is_refused_with_a_reason() {
    let api = Api::start(serves());
    let server = format!("http://{}", api.address);
    let cluster = json!({"server": server});
    let token = json!({"token": "secret"});
    let directory = tempfile::tempdir().expect("a directory");
    let ran = directory.path().join("ran");
    let exec = json!({"token": "secret", "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "touch",
        "args": [ran], "interactiveMode": "Never"}});
    let provider = json!({"token": "secret", "auth-provider": {"name": "gcp", "config": {"cmd-path": "touch",
        "cmd-args": ran}}});
    let cases = [
        (with(&cluster, &exec), "`exec`: no program is run"),
        (with(&cluster, &provider), "`auth-provider`: no program is run"),
        (with(&cluster, &json!({"username": "a", "password": "b"})), "a password"),
        (with(&cluster, &json!({"token": "secret", "as": "admin"})), "act `as` another"),
        (with(&cluster, &json!({})), "neither a token nor a certificate"),
        (with(&cluster, &json!({"tokenFile": "absent"})), "absent: No such file"),
        (with(&cluster, &json!({"token": "sec\nret"})), "`token`: is no token"),
        (with(&cluster, &json!({"client-certificate-data": "AAAA", "client-key-data": "AAAA"})), "credentials"),
        (with(&cluster, &json!({"client-certificate-data": "AAAA"})), "`client-key`: is not there"),
        (with(&cluster, &json!({"client-certificate-data": "!", "client-key-data": "AAAA"})), "is no base64"),
        (with(&json!({"server": server, "proxy-url": "http://127.0.0.1:1"}), &token), "`proxy-url`"),
        (with(&json!({"server": server, "insecure-skip-tls-verify": true}), &token), "`insecure-skip-tls-verify`"),
        (with(&json!({"server": server, "certificate-authority-data": "AAAA"}), &token), "no certificate in PEM"),
        (with(&json!({"server": server, "certificate-authority": "/proc/self/status"}), &token), "not a regular file"),
        (with(&json!({"server": "http://192.0.2.1:6443"}), &token), "does not begin with https://"),
        (with(&json!({"server": "192.0.2.1:6443"}), &token), "does not begin with https://"),
        (with(&json!({}), &token), "its `server` is no URL"),
        (json!({"current-context": "x"}), "`current-context` is none of its `contexts`"),
        (json!({}), "has no `current-context`"),
        (json!({"current-context": "secret", "users": "secret"}), "is no kubeconfig (line 1)"),
    ];
    for (kubeconfig, expected) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        let mut source = Source::read(write(directory.path(), &kubeconfig), directory, TIMES);
        let away = source.says().await;
        assert!(
            away.starts_with("away: ") && away.contains(expected) && !away.contains("secret"),
            "{kubeconfig}: {away}"
        );
    }
    assert!(!ran.exists(), "no program ran");
    assert_eq!(api.asked().len(), 0, "and the API was not asked");
}

#[tokio::test]
async fn a_kubeconfig_that_others_could_have_written_is_refused() {
    let api = Api::start(serves());
    for (name, mode, remedy) in [
        ("kubeconfig", 0o620, "run `chown"),
        ("kubeconfig", 0o602, "run `chown"),
        (".", 0o777, "run `chown"),
        // As /tmp.
        (".", 0o1777, "keep the file in another directory"),
        ("token", 0o666, "run `chown"),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("token"), "secret").expect("written");
        let cluster = json!({"server": format!("http://{}", api.address)});
        let kubeconfig = write(directory.path(), &with(&cluster, &json!({"tokenFile": "token"})));
        fs::set_permissions(path(name), Permissions::from_mode(mode)).expect("changed");
        let away = Source::read(kubeconfig, directory, TIMES).says().await;
        let expected = format!("can be written by others; {remedy}");
        assert!(away.contains(&expected), "{name} {mode:o}: {away}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("kubeconfig");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let away = Source::read(fifo, directory, TIMES).says().await;
    assert!(away.contains("not a regular file"), "{away}");
    assert_eq!(api.asked().len(), 0);
}

#[tokio::test]
async fn a_token_in_a_file_is_read_again_when_it_is_refused() {
    let api = Api::start(|asked, before| match before {
        0 => vec![Does::Answers(401, super::api::status(401, "Unauthorized"))],
        _ if asked.is_watch() => vec![Does::Begins, Does::Stays],
        _ => vec![list(10, &[])],
    });
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    fs::write(&token, "old\n").expect("written");
    let cluster = json!({"server": format!("http://{}", api.address)});
    let kubeconfig = write(directory.path(), &with(&cluster, &json!({"token": "unused", "tokenFile": "token"})));
    let mut source = Source::read(
        kubeconfig,
        directory,
        super::Times { first_pause: std::time::Duration::from_millis(300), ..TIMES },
    );
    assert!(source.says().await.starts_with("away: answers 401"));
    fs::write(&token, "new\n").expect("written");
    assert_eq!(source.says().await, "");
    let tokens: Vec<_> = api.asked().into_iter().flat_map(|asked| asked.headers).collect();
    let tokens: Vec<_> = tokens.iter().filter_map(|line| line.strip_prefix("authorization: ")).collect();
    assert_eq!(tokens[..2], ["bearer old", "bearer new"]);
}

/// Certificates: an authority of ours, and what it signed.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Authority {
        let authority = Authority(tempfile::tempdir().expect("a directory"));
        authority.make("ca", "/CN=authority", "basicConstraints=critical,CA:TRUE", &[]);
        for (name, subject, extension) in [
            ("server", "/CN=kubernetes", "subjectAltName=DNS:kubernetes"),
            ("client", "/CN=podsecd-u7s", "extendedKeyUsage=clientAuth"),
        ] {
            authority.make(
                name,
                subject,
                extension,
                &["-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.crt", "-CAkey", "ca.key"],
            );
        }
        authority
    }

    fn make(&self, name: &str, subject: &str, extension: &str, more: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-subj", subject, "-addext", extension]).args(more).current_dir(&self.0);
        openssl.args(["-out", &format!("{name}.crt"), "-keyout", &format!("{name}.key")]);
        let output = openssl.output().expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.0.path().join(name)).expect("a certificate")
    }

    /// A server, which wants a certificate of its clients or does not.
    fn server(&self, wants_certificate: bool) -> ServerConfig {
        let key = PrivateKeyDer::from_pem_file(self.0.path().join("server.key")).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca.crt")).expect("added");
        let builder = ServerConfig::builder();
        let builder = if wants_certificate {
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("built"))
        } else {
            builder.with_no_client_auth()
        };
        builder.with_single_cert(vec![self.certificate("server.crt")], key).expect("a configuration")
    }
}

#[tokio::test]
async fn the_api_is_known_by_its_certificate_and_knows_us_by_ours() {
    let authority = Authority::new();
    let (wants, does_not) =
        (Api::start_tls(authority.server(true), serves()), Api::start_tls(authority.server(false), serves()));
    let server = |api: &Api| format!("https://{}", api.address);
    let ours = json!({"client-certificate": "client.crt", "client-key": "client.key"});
    let known =
        |api: &Api| json!({"server": server(api), "certificate-authority": "ca.crt", "tls-server-name": "kubernetes"});
    let nameless = json!({"server": server(&does_not), "certificate-authority": "ca.crt"});
    let stranger =
        json!({"server": server(&does_not), "certificate-authority": "client.crt", "tls-server-name": "kubernetes"});
    for (cluster, user, expected) in [
        (known(&wants), ours, "shop/web 30080/tcp"),
        (known(&wants), json!({"token": "secret"}), "away: "),
        (known(&does_not), json!({"token": "secret"}), "shop/web 30080/tcp"),
        (nameless, json!({"token": "secret"}), "not valid for name"),
        (stranger, json!({"token": "secret"}), "invalid peer certificate"),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["ca.crt", "client.crt", "client.key"] {
            fs::copy(authority.0.path().join(name), directory.path().join(name)).expect("copied");
        }
        let mut source = Source::read(write(directory.path(), &with(&cluster, &user)), directory, TIMES);
        let says = source.says().await;
        assert!(says.contains(expected), "{cluster} {user}: {says}");
    }
    let bearers = does_not
        .asked()
        .into_iter()
        .flat_map(|asked| asked.headers)
        .filter(|line| line == "authorization: bearer secret");
    assert_eq!(bearers.count(), does_not.asked().len(), "only who is known gets the token");
}

/// A proxy of the environment would see where we go, and be sent what we say.
#[test]
fn a_proxy_of_the_environment_is_not_used() {
    const NAME: &str = "services::kubeconfig::a_proxy_of_the_environment_is_not_used";
    if std::env::var_os("HTTPS_PROXY").is_none() {
        let mut again = Command::new(std::env::current_exe().expect("known"));
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
            again.env(name, "http://127.0.0.1:1");
        }
        let output = again.args(["--exact", NAME]).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it ran");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut source = Source::start(&Api::start(serves()));
        assert_eq!(source.says().await, "shop/web 30080/tcp");
    });
}

/// What nobody may give to a helper that an escaped pod may take over.
#[test]
fn the_shipped_rights_are_to_list_and_watch_services_and_nothing_else() {
    let text = fs::read_to_string("policy/podsecd-u7s-rbac.yaml").expect("readable");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().expect("a kind")).collect();
    assert_eq!(kinds, ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Secret"]);
    let [account, role, binding, secret] = &objects[..] else { panic!("four objects") };
    let name = json!("podsecd-u7s");
    assert!(objects.iter().all(|object| object["metadata"]["name"] == name));
    assert_eq!(role["rules"], json!([{"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]}]));
    assert!(role.get("aggregationRule").is_none());
    assert_eq!(
        binding["roleRef"],
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name})
    );
    let namespace = &account["metadata"]["namespace"];
    assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": name, "namespace": namespace}]));
    assert_eq!(account["automountServiceAccountToken"], json!(false));
    assert_eq!(
        (&secret["metadata"]["namespace"], &secret["type"]),
        (namespace, &json!("kubernetes.io/service-account-token"))
    );
    assert_eq!(secret["metadata"]["annotations"], json!({"kubernetes.io/service-account.name": name}));
    assert!(secret.get("data").is_none() && secret.get("stringData").is_none(), "nothing secret is shipped");
}
