//! An OpenPGP message with one signature, as `gpg --sign` makes it (RFC 9580, 10.3), taken apart: bounded in length, in
//! packets and in nesting, for whoever stores an image writes it.

use std::io::Read;

use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{CompressedData, LiteralData, Packet, PacketParser, Signature, SignatureType, SubpacketData};

/// Longest message once it is unpacked, in bytes.
const MAX_UNPACKED: u64 = 1 << 20;
/// Most packets.
const MAX_PACKETS: usize = 16;
/// Most times that a message is packed.
const MAX_DEPTH: usize = 2;

/// A text, and the signature that belongs to it; not verified yet.
pub(super) struct Signed {
    pub(super) signature: Signature,
    pub(super) text: LiteralData,
}

impl Signed {
    /// Takes a message apart.
    ///
    /// # Errors
    /// Why it is not one text with one signature.
    pub(super) fn parse(message: &[u8]) -> Result<Signed, String> {
        let mut packets = read(message)?;
        for _ in 0..MAX_DEPTH {
            let [Packet::CompressedData(packed)] = &packets[..] else { break };
            packets = read(&unpack(packed)?)?;
        }
        let (signature, text) = match <[Packet; 3]>::try_from(packets) {
            Ok([Packet::OnePassSignature(announced), Packet::LiteralData(text), Packet::Signature(signature)]) => {
                let is = (Some(announced.typ()), Some(announced.hash_algorithm()));
                if is != (signature.typ(), signature.hash_alg()) {
                    return Err("the signature is another than the message announces".into());
                }
                (signature, text)
            }
            Ok(_) => return Err(UNEXPECTED.into()),
            Err(packets) => match <[Packet; 2]>::try_from(packets) {
                Ok([Packet::Signature(signature), Packet::LiteralData(text)]) => (signature, text),
                _ => return Err(UNEXPECTED.into()),
            },
        };
        // One over a key, say, is none over a text, whatever its bytes.
        if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
            return Err("the signature is not one over a text".into());
        }
        match refuse(&signature) {
            Some(why) => Err(why.into()),
            None => Ok(Signed { signature, text }),
        }
    }
}

const UNEXPECTED: &str = "not an OpenPGP message with one signature";

/// Why a signature counts for nothing, whoever made it, if so.
pub(super) fn refuse(signature: &Signature) -> Option<&'static str> {
    let unknown = |data: &SubpacketData| {
        matches!(data, SubpacketData::Other(..) | SubpacketData::Experimental(..) | SubpacketData::Notation(_))
    };
    let Some(config) = signature.config() else { return Some("the signature is of an unknown version") };
    if config.hashed_subpackets().any(|subpacket| subpacket.is_critical && unknown(&subpacket.data)) {
        return Some("the signature has a condition that is not understood");
    }
    // gpg takes SHA-1.
    (config.hash_alg == HashAlgorithm::Md5).then_some("the signature is over an MD5 hash")
}

/// The packets of a message, without those that mean nothing.
fn read(bytes: &[u8]) -> Result<Vec<Packet>, String> {
    let mut packets = Vec::new();
    for (count, packet) in PacketParser::new(bytes).enumerate() {
        if count == MAX_PACKETS {
            return Err("an OpenPGP message of too many packets".into());
        }
        match packet.map_err(|error| format!("not an OpenPGP message: {error}"))? {
            Packet::Marker(_) | Packet::Padding(_) => {}
            packet => packets.push(packet),
        }
    }
    Ok(packets)
}

fn unpack(packed: &CompressedData) -> Result<Vec<u8>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("the message cannot be unpacked: {error}");
    let mut bytes = Vec::new();
    let unpacked = packed.decompress().map_err(|error| wrong(&error))?;
    unpacked.take(MAX_UNPACKED + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > MAX_UNPACKED {
        return Err(format!("the message is longer than {MAX_UNPACKED} bytes when unpacked"));
    }
    Ok(bytes)
}
