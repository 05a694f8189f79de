//! The kubeconfig: how to reach the Kubernetes API, and as whom.
//!
//! Format: `Config` of kubectl's v1 (<https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>). Only what needs
//! nothing but the file and those that it names is taken: no program is run, and nothing comes from the environment.

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Config;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};

use crate::watch::open::{directory_of, is_trusted, open_regular, remedy_of_trust};

/// Larger files are neither kubeconfigs nor certificates, keys or tokens.
const MAX_FILE: u64 = 1 << 20;
const NO_TOKEN: &str = "is no token; make one as podsecd-u7s-rbac.yaml says";

/// How to reach the API, as a kubeconfig's current context says.
///
/// # Errors
/// What is wrong with which file, and what to do.
pub(super) fn load(path: &Path) -> Result<Config, String> {
    let text = read(path)?;
    let refuse = |what: &str| format!("{}: {what}", path.display());
    let parsed: Kubeconfig = serde_saphyr::from_slice(&text).map_err(|error| {
        // Not what it says: that may be a token.
        let place = error.location().map_or_else(String::new, |place| format!(" (line {})", place.line()));
        refuse(&format!("is no kubeconfig{place}; make it as podsecd-u7s-rbac.yaml says"))
    })?;
    let (cluster, user) = choose(parsed).map_err(|what| refuse(&what))?;
    let directory = directory_of(path);
    check_cluster(&cluster).and_then(|()| check_user(&user)).map_err(|what| refuse(&what))?;
    let server = cluster.server.as_deref().unwrap_or_default();
    let url = server.parse().map_err(|_| refuse("its `server` is no URL; it looks like https://127.0.0.1:6443"))?;
    let mut config = Config::new(url);
    check_server(&config).map_err(|what| refuse(&what))?;
    config.tls_server_name = cluster.tls_server_name;
    let (data, file) = (cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref());
    if let Some(pem) = either(data, file, directory).map_err(|what| with_key(path, "certificate-authority", &what))? {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = certificates.ok().filter(|all| !all.is_empty());
        let certificates =
            certificates.ok_or_else(|| refuse("its `certificate-authority` has no certificate in PEM"))?;
        config.root_cert = Some(certificates.into_iter().map(|certificate| certificate.to_vec()).collect());
    }
    config.auth_info = identify(&user, directory).map_err(|(key, what)| with_key(path, key, &what))?;
    // There is a pause of our own, which is longer each time.
    config.default_retry = false;
    Ok(config)
}

fn with_key(path: &Path, key: &str, what: &str) -> String {
    format!("{}: `{key}`: {what}", path.display())
}

/// The cluster and the user of the current context.
fn choose(file: Kubeconfig) -> Result<(Cluster, AuthInfo), String> {
    let name = file.current_context.filter(|name| !name.is_empty());
    let name = name.ok_or("has no `current-context`; set it with `kubectl config use-context`")?;
    let context = file.contexts.into_iter().find(|context| context.name == name).and_then(|named| named.context);
    let context = context.ok_or("its `current-context` is none of its `contexts`")?;
    let cluster = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|named| named.cluster);
    let cluster = cluster.ok_or("the `cluster` of its `current-context` is none of its `clusters`")?;
    let user = file.auth_infos.into_iter().find(|user| Some(&user.name) == context.user.as_ref());
    let user = user.and_then(|named| named.auth_info);
    let user = user.ok_or("the `user` of its `current-context` is none of its `users`")?;
    Ok((cluster, user))
}

fn check_cluster(cluster: &Cluster) -> Result<(), String> {
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err("has `insecure-skip-tls-verify`, so that anybody could be the API; give `certificate-authority` \
                    instead, and `tls-server-name: kubernetes` if the certificate does not have the address"
            .into());
    }
    if cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()) {
        return Err("has `proxy-url`; the API is reached directly only, remove it".into());
    }
    Ok(())
}

fn check_user(user: &AuthInfo) -> Result<(), String> {
    let plugin = [("exec", user.exec.is_some()), ("auth-provider", user.auth_provider.is_some())];
    if let Some((key, _)) = plugin.iter().find(|(_, is_there)| *is_there) {
        return Err(format!(
            "its user has `{key}`: no program is run for credentials; give a token or a certificate, as \
             podsecd-u7s-rbac.yaml says"
        ));
    }
    if user.username.is_some() || user.password.is_some() {
        return Err("its user has a password, which the API does not take; give a token or a certificate".into());
    }
    if user.impersonate.is_some() || user.impersonate_groups.is_some() || user.impersonate_uid.is_some() {
        return Err("its user is to act `as` another; give the other's token or certificate".into());
    }
    Ok(())
}

/// A token must not cross a network for everybody to read.
fn check_server(config: &Config) -> Result<(), String> {
    let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match config.cluster_url.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_local => Ok(()),
        _ => {
            Err("its `server` does not begin with https://; the token would cross the network for everybody to read"
                .into())
        }
    }
}

/// Who we are: a token, a certificate, or both.
fn identify(user: &AuthInfo, directory: &Path) -> Result<AuthInfo, (&'static str, String)> {
    let mut identity = AuthInfo::default();
    // As kubectl does: the file, which may be renewed, goes before what is written down once.
    let token_file = user.token_file.as_deref().filter(|file| !file.is_empty());
    let (key, token) = match token_file {
        Some(file) => {
            let bytes = read(&directory.join(file)).map_err(|what| ("tokenFile", what))?;
            let token = String::from_utf8(bytes).map_err(|_| ("tokenFile", NO_TOKEN.to_owned()))?;
            ("tokenFile", token.trim().to_owned())
        }
        None => ("token", exposed(user.token.as_ref()).unwrap_or_default().to_owned()),
    };
    // RFC 6750; anything else would be no header, or two.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err((key, NO_TOKEN.to_owned()));
    }
    identity.token = (!token.is_empty()).then(|| token.into());
    let (data, file) = (user.client_certificate_data.as_deref(), user.client_certificate.as_deref());
    let certificate = either(data, file, directory).map_err(|what| ("client-certificate", what))?;
    let (data, file) = (exposed(user.client_key_data.as_ref()), user.client_key.as_deref());
    let key = either(data, file, directory).map_err(|what| ("client-key", what))?;
    identity.client_certificate_data = certificate.map(|pem| STANDARD.encode(pem));
    identity.client_key_data = key.map(|pem| STANDARD.encode(pem).into());
    match (&identity.client_certificate_data, &identity.client_key_data) {
        (None, None) if identity.token.is_none() => {
            Err(("user", "has neither a token nor a certificate; make one as podsecd-u7s-rbac.yaml says".into()))
        }
        (Some(_), None) => Err(("client-key", "is not there, but the certificate is; give both".into())),
        (None, Some(_)) => Err(("client-certificate", "is not there, but the key is; give both".into())),
        _ => Ok(identity),
    }
}

fn exposed(secret: Option<&SecretString>) -> Option<&str> {
    secret.map(ExposeSecret::expose_secret)
}

/// What stands in the kubeconfig itself, in base64, or else in a file, whose path is relative to the kubeconfig's
/// directory.
fn either(data: Option<&str>, file: Option<&str>, directory: &Path) -> Result<Option<Vec<u8>>, String> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        return STANDARD.decode(data).map(Some).map_err(|_| "is no base64".into());
    }
    file.filter(|file| !file.is_empty()).map(|file| read(&directory.join(file))).transpose()
}

/// Reads a file that nobody but root and ourselves could have written.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let refuse = |error: io::Error| {
        format!("{}: {error}; see that it is a regular file that u7s-admin can read", path.display())
    };
    let file = open_regular(path).map_err(refuse)?;
    let directory = directory_of(path);
    for (what, metadata) in [(path, file.metadata()), (directory, directory.metadata())] {
        let metadata = metadata.map_err(refuse)?;
        if !is_trusted(&metadata) {
            let remedy = remedy_of_trust(what, &metadata, "u7s-admin");
            return Err(format!("{} can be written by others; {remedy}", what.display()));
        }
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(refuse)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refuse(io::Error::other("larger than 1 MiB")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_a_directory_is_in_the_current_one() {
        for (path, directory) in
            [("/etc/podsecd/kubeconfig", "/etc/podsecd"), ("/kubeconfig", "/"), ("kubeconfig", ".")]
        {
            assert_eq!(directory_of(Path::new(path)), Path::new(directory));
        }
    }
}
