//! Which name a signature must bear for an image: `signedIdentity` of containers-policy.json(5), as containers/image
//! judges it (`signature/policy_reference_match.go`).

use crate::checks::policy::document::Identity;
use crate::checks::policy::reference::Reference;

/// Whether a signature for this name is one for the image. What is no name is none.
pub fn accepts(identity: &Identity, image: &Reference, signed: &str) -> bool {
    let Ok(signed) = Reference::parse(signed) else { return false };
    match identity {
        Identity::MatchExact {} => is_exact(image, &signed),
        Identity::MatchRepoDigestOrExact {} => is_repo_digest_or_exact(image, &signed),
        Identity::MatchRepository {} => image.repository() == signed.repository(),
        Identity::ExactReference { docker_reference } => {
            Reference::parse(docker_reference).is_ok_and(|wanted| is_exact(&wanted, &signed))
        }
        Identity::ExactRepository { docker_repository } => {
            Reference::parse(docker_repository).is_ok_and(|wanted| wanted.repository() == signed.repository())
        }
        Identity::RemapIdentity { prefix, signed_prefix } => {
            remap(image, prefix, signed_prefix).is_some_and(|image| is_repo_digest_or_exact(&image, &signed))
        }
    }
}

fn is_exact(wanted: &Reference, signed: &Reference) -> bool {
    // No default tag is thought up on either side.
    !wanted.is_name_only() && !signed.is_name_only() && wanted == signed
}

fn is_repo_digest_or_exact(wanted: &Reference, signed: &Reference) -> bool {
    if signed.is_name_only() {
        return false;
    }
    match (wanted.tag(), wanted.digest()) {
        (Some(_), _) => wanted == signed,
        // The digest itself is compared with the manifest, as that of the signature is.
        (None, Some(_)) => wanted.repository() == signed.repository(),
        (None, None) => false,
    }
}

/// The image's name with another beginning, or as it is where it begins otherwise; `None` if that makes no name.
fn remap(image: &Reference, prefix: &str, signed_prefix: &str) -> Option<Reference> {
    let rest = image.repository().strip_prefix(prefix);
    if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Some(image.clone());
    }
    let name = image.to_string();
    let name = format!("{signed_prefix}{}", name.strip_prefix(prefix)?);
    // It must be an expanded name already.
    Reference::parse(&name).ok().filter(|reference| reference.to_string() == name)
}

#[cfg(test)]
mod tests;
