//! Which addresses the name of an external server may lead to: public ones. Any other, a name's owner could choose to
//! reach what only this host reaches (DNS rebinding).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of an address it is that is no public one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// This host's own (RFC 1122, RFC 4291).
    Loopback,
    /// Of one link, where clouds have their metadata (RFC 3927, RFC 4291).
    LinkLocal,
    /// Of one site: RFC 1918, RFC 4193, RFC 6598, and the deprecated site-local of IPv6.
    Private,
    /// Many at once.
    Multicast,
    /// None in particular: this host, to the kernel.
    Unspecified,
    /// Of a protocol or a test, reserved, or broadcast (RFC 6890, RFC 2544).
    Reserved,
}

impl std::fmt::Display for Special {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Private => "private",
            Self::Multicast => "multicast",
            Self::Unspecified => "unspecified",
            Self::Reserved => "reserved",
        })
    }
}

/// What an address is; `None`: a public one. An IPv6 address with an IPv4 address in it is what that one is.
#[must_use]
pub fn special(address: IpAddr) -> Option<Special> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<Special> {
    Some(match address.octets() {
        [0, 0, 0, 0] => Special::Unspecified,
        [127, ..] => Special::Loopback,
        [169, 254, ..] => Special::LinkLocal,
        // The address of Azure's own services within each of its machines is in a public range.
        [168, 63, 129, 16] => Special::LinkLocal,
        [10, ..] | [172, 16..32, ..] | [192, 168, ..] | [100, 64..128, ..] => Special::Private,
        [224..240, ..] => Special::Multicast,
        [0, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] | [240..=255, ..] => Special::Reserved,
        _ => return None,
    })
}

fn special_v6(address: Ipv6Addr) -> Option<Special> {
    if let Some(v4) = embedded(address) {
        return special_v4(v4);
    }
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Special::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Special::Loopback,
        [0xfe80..=0xfebf, ..] => Special::LinkLocal,
        // Of the last, where the IPv4 address in it is, is the network's own choice (RFC 8215).
        [0xfec0..=0xfeff | 0xfc00..=0xfdff, ..] | [0x64, 0xff9b, 1, ..] => Special::Private,
        [0xff00..=0xffff, ..] => Special::Multicast,
        // Global unicast is assigned below 2000::/3 alone (RFC 4291); the rest of the table is of protocols.
        [0x2001, 0..=0x1ff, ..] => Special::Reserved,
        [0x2000..=0x3fff, ..] => return None,
        _ => Special::Reserved,
    })
}

/// The IPv4 address that an IPv6 address leads to: mapped, translated (NAT64, RFC 6052), 6to4 (RFC 3056), or
/// compatible (RFC 4291).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => of(high, low),
        [0x2002, high, low, ..] => of(high, low),
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, high, low] => of(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_leads_to_no_public_address_is_told() {
        let table = [
            ("127.0.0.1", Some(Special::Loopback)),
            ("127.255.0.3", Some(Special::Loopback)),
            ("::1", Some(Special::Loopback)),
            ("::ffff:127.0.0.1", Some(Special::Loopback)),
            ("::127.0.0.1", Some(Special::Loopback)),
            ("64:ff9b::7f00:1", Some(Special::Loopback)),
            ("2002:7f00:1::", Some(Special::Loopback)),
            ("0.0.0.0", Some(Special::Unspecified)),
            ("::", Some(Special::Unspecified)),
            ("::ffff:0.0.0.0", Some(Special::Unspecified)),
            ("0.1.2.3", Some(Special::Reserved)),
            ("169.254.169.254", Some(Special::LinkLocal)),
            ("::ffff:169.254.169.254", Some(Special::LinkLocal)),
            ("64:ff9b::a9fe:a9fe", Some(Special::LinkLocal)),
            ("64:ff9b:1:ffff::a9fe:a9fe", Some(Special::Private)),
            ("168.63.129.16", Some(Special::LinkLocal)),
            ("fe80::1", Some(Special::LinkLocal)),
            ("febf::1", Some(Special::LinkLocal)),
            ("10.0.0.1", Some(Special::Private)),
            ("172.16.0.1", Some(Special::Private)),
            ("172.31.255.255", Some(Special::Private)),
            ("192.168.1.1", Some(Special::Private)),
            ("100.100.100.200", Some(Special::Private)),
            ("fd00:ec2::254", Some(Special::Private)),
            ("fc00::1", Some(Special::Private)),
            ("fec0::1", Some(Special::Private)),
            ("64:ff9b::a00:1", Some(Special::Private)),
            ("224.0.0.1", Some(Special::Multicast)),
            ("ff02::1", Some(Special::Multicast)),
            ("255.255.255.255", Some(Special::Reserved)),
            ("198.18.0.1", Some(Special::Reserved)),
            ("192.0.0.192", Some(Special::Reserved)),
            ("100::1", Some(Special::Reserved)),
            ("2001::1", Some(Special::Reserved)),
            ("5f00::1", Some(Special::Reserved)),
            ("4000::1", Some(Special::Reserved)),
            ("172.15.0.1", None),
            ("172.32.0.1", None),
            ("100.63.0.1", None),
            ("100.128.0.1", None),
            ("192.0.1.1", None),
            ("8.8.8.8", None),
            ("::ffff:8.8.8.8", None),
            ("64:ff9b::808:808", None),
            ("2606:4700::1", None),
            ("2001:200::1", None),
        ];
        for (text, expected) in table {
            assert_eq!(special(text.parse().unwrap()), expected, "{text}");
        }
    }
}
