//! Fixed newstyle negotiation, up to the first request.

use super::peer::{Peer, wrong};
use super::wire::{self, Geometry, handshake, option, reply};
use udrv_backend::Result;

/// Most options of a client. One that goes on asking is turned away.
const MOST_OPTIONS: u32 = 64;

/// Whether the client goes on to requests; not if it has what it wanted.
pub fn negotiate(peer: &mut Peer<'_>, geometry: &Geometry) -> Result<bool> {
    let ours = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    let greeting = [&wire::NBD_MAGIC.to_be_bytes()[..], &wire::OPTION_MAGIC.to_be_bytes(), &ours.to_be_bytes()];
    peer.send(&greeting.concat(), &[])?;
    let mut flags = [0; 4];
    peer.receive(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(ours) != 0 {
        return Err(wrong(format!("handshake flags {flags:#x}"), "fixed newstyle (1), and no zeros (2)"));
    }
    let no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
    for _ in 0..MOST_OPTIONS {
        let mut head = [0; wire::OPTION_SIZE];
        peer.receive(&mut head)?;
        let Some((kind, length)) = wire::option_head(head) else { return Err(wrong("no option", "IHAVEOPT")) };
        if length > wire::MAX_OPTION {
            return Err(wrong(format!("option {kind} of {length} bytes"), "less than 8 KiB"));
        }
        let mut data = vec![0; length as usize];
        peer.receive(&mut data)?;
        if let Some(goes_on) = answer(peer, geometry, no_zeroes, kind, &data)? {
            return Ok(goes_on);
        }
    }
    Err(wrong(format!("{MOST_OPTIONS} options"), "one of them NBD_OPT_GO"))
}

/// Whether the client goes on to requests, once that is decided.
fn answer(peer: &mut Peer<'_>, geometry: &Geometry, no_zeroes: bool, kind: u32, data: &[u8]) -> Result<Option<bool>> {
    let mut send = |answer: u32, data: &[u8]| peer.send(&wire::option_reply(kind, answer, data), &[]);
    match kind {
        option::EXPORT_NAME if data.is_empty() => {
            peer.send(&geometry.export(no_zeroes), &[])?;
            return Ok(Some(true));
        }
        // There is no way to refuse it but to leave.
        option::EXPORT_NAME => return Err(wrong("the name of another export", "the empty one")),
        option::ABORT => {
            send(reply::ACK, &[])?;
            return Ok(Some(false));
        }
        option::LIST if !data.is_empty() => send(reply::INVALID, b"a list has no data")?,
        option::LIST => {
            send(reply::SERVER, &wire::listed(""))?;
            send(reply::ACK, &[])?;
        }
        option::INFO | option::GO => match wire::wanted_export(data) {
            None => send(reply::INVALID, b"lengths that are not those of the data")?,
            Some(name) if !name.is_empty() => send(reply::UNKNOWN_EXPORT, b"there is one export, whose name is empty")?,
            Some(_) => {
                for information in geometry.information() {
                    send(reply::INFO, &information)?;
                }
                send(reply::ACK, &[])?;
                return Ok((kind == option::GO).then_some(true));
            }
        },
        _ => send(reply::UNSUPPORTED, &[])?,
    }
    Ok(None)
}
