// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Relays ChannelData between UDP clients and UDP peers (RFC 8656 §12) before the kernel's network stack.
//
// `src/offload/build` makes relay.bpf.o from this file, and `src/offload/build --check` compares. docs/offload.md
// describes the maps. The tests in tests/offload have a second implementation of every decision below.
//
// The default is XDP_PASS: user space serves every packet that this program does not relay. All decisions precede the
// first change of a packet, because user space could not serve a changed packet.

#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

// The member types from which a loader reads the attributes of a map.
#define NUMBER(name, value) int(*name)[value]
#define TYPE(name, value) __typeof__(value) *name

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The program is built for little-endian machines."
#endif

// The words of a structure.
typedef __u64 __attribute__((may_alias)) word64;
typedef __u16 __attribute__((may_alias)) word16;

// Network byte order to or from the order of the machine.
#define NET16(value) ((__u16)__builtin_bswap16(value))
#define NET32(value) ((__u32)__builtin_bswap32(value))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
// CLOCK_MONOTONIC in nanoseconds as of the last tick of the kernel, usually at most 10 ms ago. Unlike the precise time,
// it costs the same on every machine.
static __u64 (*const coarse_time)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*const redirect)(__u32 interface, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const adjust_head)(struct xdp_md *context, int by) = (void *)BPF_FUNC_xdp_adjust_head;
static long (*const adjust_tail)(struct xdp_md *context, int by) = (void *)BPF_FUNC_xdp_adjust_tail;

enum {
	ETHERTYPE_IPV4 = 0x0800,
	ETHERTYPE_IPV6 = 0x86dd,
	PROTOCOL_UDP = 17,
	// Version 4, and a header of five 32-bit words: no options.
	IPV4_WITHOUT_OPTIONS = 0x45,
	IPV4_DONT_FRAGMENT = 0x4000,
	IPV4_MAPPED = 0xffff,
	MAGIC_COOKIE = 0x2112a442,
	// The shortest frame without its checksum. Some drivers send a shorter one without padding.
	SHORTEST_FRAME = 60,
};

struct ethernet {
	__u8 destination[6];
	__u8 source[6];
	__be16 type;
};

struct ipv4 {
	__u8 version;
	__u8 traffic_class;
	__be16 length;
	__be16 identification;
	__be16 fragment;
	__u8 hop_limit;
	__u8 protocol;
	__u16 checksum;
	__be32 source;
	__be32 destination;
};

struct address {
	__be32 words[4];
};

struct ipv6 {
	// Version, Traffic Class and Flow Label.
	__be32 first;
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct address source;
	struct address destination;
};

struct udp {
	__be16 source;
	__be16 destination;
	__be16 length;
	__u16 checksum;
};

struct channel_header {
	__be16 number;
	__be16 length;
};

// The addresses and ports of a received packet. An IPv4 address is in the IPv4-mapped form.
struct key {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	// The channel number in `to_peer`; zero in `to_client`.
	__be16 channel;
	__u16 zero;
};

// How a packet is sent on. An unused field is zero.
struct entry {
	// The key of this entry.
	struct key key;
	// The time of CLOCK_MONOTONIC in nanoseconds from which on the entry is not used.
	__u64 expires;
	// Of the packet that is sent. An IPv4 address is in the IPv4-mapped form.
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	// The channel number that is added, in `to_client`.
	__be16 channel;
	// 4 or 6.
	__u8 version;
	// The index in `lease`: the worker that has made the entry.
	__u8 worker;
	// The index of the interface that sends it. With REDIRECTED, XDP_TX is not used: see src/offload/layout.rs.
	__u32 interface;
	// The index in `counters`.
	__u32 slot;
	__u8 link_destination[6];
	__u8 link_source[6];
	// The Flow Label of an IPv6 packet, in the lower 20 bits.
	__be32 flow_label;
	// The longest IP packet that the interface sends, in bytes.
	__u16 longest_packet;
	// The Identification of the first IPv4 packet. Each further one has the next number.
	__u16 identification;
	// The folded one's complement sum of what the UDP checksum covers after the change, less what it covers before:
	// addresses, ports, both lengths and the channel number. The length in the channel header is not included.
	__u16 udp_difference;
	// The folded one's complement sum of an IPv4 header without traffic class, length, identification and hop
	// limit.
	__u16 ipv4_sum;
	// The folded one's complement sum of the pseudo-header of a received packet, without its length.
	__u16 pseudo_header_sum;
	__u16 zero[3];
	// The sum of all other words, each multiplied by another power of FACTOR. See `read_entry`.
	__u64 check;
};

// An odd number, so that no change of a single word leaves `check` as it is.
static const __u64 FACTOR = 0x9e3779b97f4a7c15;

enum {
	ENTRY_WORDS = sizeof(struct entry) / sizeof(__u64),
	KEY_WORDS = sizeof(struct key) / sizeof(__u64),
};

#define REDIRECTED 0x80000000u

_Static_assert(sizeof(struct key) == 40, "the loader writes keys of 40 bytes");
_Static_assert(sizeof(struct entry) == 136, "the loader writes entries of 136 bytes");

struct counter {
	__u64 packets;
	// Application data, without the channel header.
	__u64 bytes;
	// The time of CLOCK_MONOTONIC in nanoseconds of the last packet.
	__u64 last;
};

// What became of a packet that has an entry. All but RELAYED pass to user space unchanged.
enum outcome {
	// It was handed to the driver.
	RELAYED,
	// The entry was replaced while it was read, or is damaged.
	REPLACED,
	// The IPv4 header checksum is wrong, or lengths disagree.
	MALFORMED,
	HOP_LIMIT,
	EXPIRED,
	TURN_MESSAGE,
	TOO_LONG,
	// The UDP checksum is zero, and the packet is received or sent over IPv6.
	NO_CHECKSUM,
	NO_COUNTER,
	NO_HEADROOM,
	NO_TAILROOM,
	// The worker of the entry has not extended its lease.
	NO_LEASE,
	// The frame is addressed to the link address of another host.
	OTHER_HOST,
	// The UDP checksum covers only the pseudo-header: the sender has left the rest to a device.
	PARTIAL_CHECKSUM,
	OUTCOMES,
};

// An interface and the link address to which its frames are addressed.
struct link {
	__u32 interface;
	__u8 address[6];
	__u16 zero;
};

enum { LINKS = 256 };

// The loader sets max_entries of the first three maps. A hash map that is full accepts no entry and evicts none.
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, 1);
	TYPE(key, struct key);
	TYPE(value, struct entry);
} to_peer SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, 1);
	TYPE(key, struct key);
	TYPE(value, struct entry);
} to_client SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct counter);
} counters SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, OUTCOMES);
	TYPE(key, __u32);
	TYPE(value, __u64);
} outcomes SECTION(".maps");

// The time of CLOCK_MONOTONIC in nanoseconds from which on the entries of a worker are not used. Each worker extends its
// own, so that the entries of one that has stalled or ended are soon not used.
struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 256);
	TYPE(key, __u32);
	TYPE(value, __u64);
} lease SECTION(".maps");

// The interfaces through which entries send, each at its index modulo LINKS.
struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, LINKS);
	TYPE(key, __u32);
	TYPE(value, struct link);
} links SECTION(".maps");

enum direction { TO_PEER, TO_CLIENT };

// What the program reads of a packet before it changes it.
struct datagram {
	__u8 traffic_class;
	__u8 hop_limit;
	// The UDP length in bytes.
	__u16 length;
	__u16 checksum;
};

INLINE void count(__u32 outcome)
{
	__u64 *counted = map_lookup(&outcomes, &outcome);
	if (counted)
		*counted += 1;
}

INLINE int pass(enum outcome reason)
{
	count(reason);
	return XDP_PASS;
}

INLINE __u64 frame_length(const struct xdp_md *context)
{
	__u64 length = (void *)(long)context->data_end - (void *)(long)context->data;
	// The verifier requires that the difference of pointers has 64 bits. The compiler would use 32.
	__asm__ volatile("" : "+r"(length));
	return length;
}

// Returns the one's complement sum in 16 bits.
INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

INLINE int has_right_checksum(const struct ipv4 *ip)
{
	const __u32 *words = (const void *)ip;
	return fold((__u64)words[0] + words[1] + words[2] + words[3] + words[4]) == 0xffff;
}

// Copies an entry. Returns whether the copy is whole, and is that of the key.
//
// The kernel may give the memory of an entry to another key, or to a new entry of the same key, even while a program
// reads it. Then the copy has parts of both, in any order. `check` shows it, because the copy itself is examined.
INLINE int read_entry(struct entry *copy, const struct entry *entry, const struct key *key)
{
	// The compiler must not read the entry a second time.
	const volatile word64 *from = (const volatile void *)entry;
	const word64 *wanted = (const void *)key;
	word64 *to = (void *)copy;
	__u64 factor = 1, sum = 0, difference = 0;

#pragma unroll
	for (int word = 0; word < ENTRY_WORDS - 1; word++) {
		to[word] = from[word];
		factor *= FACTOR;
		sum += to[word] * factor;
	}
#pragma unroll
	for (int word = 0; word < KEY_WORDS; word++)
		difference |= to[word] ^ wanted[word];
	return (difference | (sum ^ from[ENTRY_WORDS - 1])) == 0;
}

INLINE int are_equal(const __u8 *address, const __u8 *other)
{
	// The verifier requires that accesses to the stack are aligned.
	const word16 *words = (const void *)address, *others = (const void *)other;
	return ((words[0] ^ others[0]) | (words[1] ^ others[1]) | (words[2] ^ others[2])) == 0;
}

// Returns whether a frame is addressed to the interface that has received it. Others arrive if the interface is in
// promiscuous mode, and the kernel drops them.
//
// The member of a bond is not in `links`. It has the link address of the bond, through which the entry sends.
INLINE int is_for_this_host(const struct xdp_md *context, const struct ethernet *link, const struct entry *entry)
{
	__u32 interface = context->ingress_ifindex;

	if (interface != entry->interface) {
		__u32 place = interface % LINKS;
		const struct link *known = map_lookup(&links, &place);
		if (known && known->interface == interface)
			return are_equal(link->destination, known->address);
	}
	return are_equal(link->destination, entry->link_source);
}

// Returns whether application data is a message that user space does not relay: see src/turn/protocol/control.rs.
INLINE int is_turn_message(const void *data, const void *end, __u16 length)
{
	const __be32 *words = data;

	if (length < 8 || data + 8 > end || *(const __u8 *)data > 3 || words[1] != NET32(MAGIC_COOKIE))
		return 0;
	// RFC 8489 §5: the class is in the bits 0x0110.
	__u16 method = NET16(*(const __be16 *)data) & ~0x0110;
	return method == 0x003 || method == 0x004 || (method >= 0x006 && method <= 0x00c);
}

// Writes the headers of a packet, and returns where to send it.
INLINE int write(struct xdp_md *context, const struct entry *entry, const struct datagram *received, int version,
		 enum direction direction, __u16 identification, __u16 checksum)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethernet *link = data;
	struct udp *udp = data + sizeof(*link) + (version == 4 ? sizeof(struct ipv4) : sizeof(struct ipv6));
	struct channel_header *channel = (void *)(udp + 1);
	__u16 length = direction == TO_PEER ? received->length - sizeof(*channel) : received->length + sizeof(*channel);

	// The lengths were examined. The verifier requires this comparison with the new pointers.
	if ((void *)(direction == TO_PEER ? (void *)channel : (void *)(channel + 1)) > end)
		return XDP_ABORTED;

	// Both link addresses.
	__builtin_memcpy(link->destination, entry->link_destination, 12);
	if (version == 4) {
		struct ipv4 *ip = data + sizeof(*link);
		// DF is zero, as in the packets of the relay sockets.
		ip->version = IPV4_WITHOUT_OPTIONS;
		ip->traffic_class = received->traffic_class;
		ip->length = NET16(sizeof(*ip) + length);
		ip->identification = NET16(identification);
		ip->fragment = 0;
		ip->hop_limit = received->hop_limit - 1;
		ip->protocol = PROTOCOL_UDP;
		ip->source = entry->source.words[3];
		ip->destination = entry->destination.words[3];
		ip->checksum = ~fold((__u64)entry->ipv4_sum + NET16(ip->traffic_class) + ip->length +
				     ip->identification + ip->hop_limit);
		link->type = NET16(ETHERTYPE_IPV4);
	} else {
		struct ipv6 *ip = data + sizeof(*link);
		ip->first = NET32(6u << 28 | (__u32)received->traffic_class << 20) | entry->flow_label;
		ip->payload_length = NET16(length);
		ip->next_header = PROTOCOL_UDP;
		ip->hop_limit = received->hop_limit - 1;
		ip->source = entry->source;
		ip->destination = entry->destination;
		link->type = NET16(ETHERTYPE_IPV6);
	}
	udp->source = entry->source_port;
	udp->destination = entry->destination_port;
	udp->length = NET16(length);
	udp->checksum = checksum;
	if (direction == TO_CLIENT) {
		channel->number = entry->channel;
		channel->length = NET16(received->length - sizeof(*udp));
	}
	return entry->interface == context->ingress_ifindex ? XDP_TX : redirect(entry->interface & ~REDIRECTED, 0);
}

// Sends a packet on, or passes it. Everything before `adjust_head` is a decision.
INLINE int relay_as(struct xdp_md *context, const struct entry *entry, const struct datagram *received,
		    int received_version, int version, enum direction direction, __u16 application)
{
	const __u32 channel_header = sizeof(struct channel_header);
	const __u32 udp_length =
		direction == TO_PEER ? received->length - channel_header : received->length + channel_header;
	const __u32 packet = udp_length + (version == 4 ? sizeof(struct ipv4) : sizeof(struct ipv6));
	const int growth = (version - received_version) * 10 + (direction == TO_PEER ? -4 : 4);

	if (packet > entry->longest_packet)
		return pass(TOO_LONG);
	if (received->checksum == 0 && (received_version == 6 || version == 6))
		return pass(NO_CHECKSUM);
	// A sender on the same machine may leave this sum, which is not complemented. One of 65536 checksums is equal to it
	// by chance.
	if (received->checksum == fold((__u64)entry->pseudo_header_sum + NET16(received->length)))
		return pass(PARTIAL_CHECKSUM);
	struct counter *counter = map_lookup(&counters, &entry->slot);
	if (!counter)
		return pass(NO_COUNTER);
	__u64 now = coarse_time();
	if (now >= entry->expires)
		return pass(EXPIRED);
	__u32 worker = entry->worker;
	__u64 *leased = map_lookup(&lease, &worker);
	if (!leased || now >= *leased)
		return pass(NO_LEASE);

	__u32 frame = frame_length(context) + growth;
	__u32 wanted = sizeof(struct ethernet) + packet;
	if (wanted < SHORTEST_FRAME)
		wanted = SHORTEST_FRAME;
	if (adjust_head(context, -growth))
		return pass(NO_HEADROOM);
	// Removes padding of a received frame, or pads a short one.
	if (frame != wanted && adjust_tail(context, (int)(wanted - frame))) {
		adjust_head(context, growth);
		return pass(NO_TAILROOM);
	}

	__u16 checksum = 0;
	if (received->checksum != 0) {
		__u16 channel_length = NET16(application);
		checksum = ~fold((__u64)(__u16)~received->checksum + entry->udp_difference +
				 (direction == TO_PEER ? (__u16)~channel_length : channel_length));
		// RFC 768: a computed zero is sent as 0xffff.
		if (checksum == 0)
			checksum = 0xffff;
	}
	__u16 identification = entry->identification + (__u16)counter->packets;
	counter->packets += 1;
	counter->bytes += application;
	counter->last = now;
	count(RELAYED);
	return write(context, entry, received, version, direction, identification, checksum);
}

// Decides about a packet that has an entry.
INLINE int relay_with(struct xdp_md *context, const struct entry *found, const struct key *key, int version,
		      enum direction direction)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ipv4 *ipv4 = data + sizeof(struct ethernet);
	struct ipv6 *ipv6 = data + sizeof(struct ethernet);
	struct udp *udp = version == 4 ? (void *)(ipv4 + 1) : (void *)(ipv6 + 1);
	struct channel_header *channel = (void *)(udp + 1);
	struct entry entry;

	if (!read_entry(&entry, found, key))
		return pass(REPLACED);
	if ((void *)channel > end)
		return XDP_PASS;
	if (!is_for_this_host(context, data, &entry))
		return pass(OTHER_HOST);

	struct datagram received = { .length = NET16(udp->length), .checksum = udp->checksum };
	__u32 packet;
	if (version == 4) {
		received.traffic_class = ipv4->traffic_class;
		received.hop_limit = ipv4->hop_limit;
		packet = NET16(ipv4->length);
		if (packet != sizeof(*ipv4) + received.length || !has_right_checksum(ipv4))
			return pass(MALFORMED);
	} else {
		received.traffic_class = NET32(ipv6->first) >> 20;
		received.hop_limit = ipv6->hop_limit;
		packet = sizeof(*ipv6) + NET16(ipv6->payload_length);
		if (packet != sizeof(*ipv6) + received.length)
			return pass(MALFORMED);
	}
	// Not with pointers: to the verifier of Linux 6.1, a length in network order could be any number.
	if (sizeof(struct ethernet) + packet > frame_length(context))
		return pass(MALFORMED);

	void *application = channel;
	__u16 overhead = sizeof(*udp);
	if (direction == TO_PEER) {
		application = channel + 1;
		overhead += sizeof(*channel);
		if (application > end || received.length < overhead ||
		    NET16(channel->length) != received.length - overhead)
			return pass(MALFORMED);
	} else if (received.length < overhead) {
		return pass(MALFORMED);
	}
	__u16 length = received.length - overhead;
	if (received.hop_limit <= 1)
		return pass(HOP_LIMIT);
	if (is_turn_message(application, end, length))
		return pass(TURN_MESSAGE);
	if (entry.version == 4)
		return relay_as(context, &entry, &received, version, 4, direction, length);
	return relay_as(context, &entry, &received, version, 6, direction, length);
}

INLINE int received(struct xdp_md *context, int version)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct key key;
	struct udp *udp;

	if (version == 4) {
		struct ipv4 *ip = data + sizeof(struct ethernet);
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->version != IPV4_WITHOUT_OPTIONS || ip->protocol != PROTOCOL_UDP ||
		    ip->fragment & ~NET16(IPV4_DONT_FRAGMENT))
			return XDP_PASS;
		key.source = (struct address){ { 0, 0, NET32(IPV4_MAPPED), ip->source } };
		key.destination = (struct address){ { 0, 0, NET32(IPV4_MAPPED), ip->destination } };
	} else {
		struct ipv6 *ip = data + sizeof(struct ethernet);
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || (ip->first & NET32(0xf0000000)) != NET32(0x60000000) ||
		    ip->next_header != PROTOCOL_UDP)
			return XDP_PASS;
		key.source = ip->source;
		key.destination = ip->destination;
		// The entries of IPv4 packets are not for IPv6 packets with IPv4-mapped addresses.
		if (key.source.words[0] == 0 && key.source.words[1] == 0 && key.source.words[2] == NET32(IPV4_MAPPED))
			return XDP_PASS;
	}
	key.source_port = udp->source;
	key.destination_port = udp->destination;
	key.zero = 0;

	// Channel numbers begin with the bits 01 (RFC 5766 §11; RFC 8656 §12 uses fewer). A peer may send such data as
	// well.
	struct channel_header *channel = (void *)(udp + 1);
	if ((void *)(channel + 1) <= end && (channel->number & NET16(0xc000)) == NET16(0x4000)) {
		key.channel = channel->number;
		struct entry *entry = map_lookup(&to_peer, &key);
		if (entry)
			return relay_with(context, entry, &key, version, TO_PEER);
	}
	key.channel = 0;
	struct entry *entry = map_lookup(&to_client, &key);
	if (entry)
		return relay_with(context, entry, &key, version, TO_CLIENT);
	return XDP_PASS;
}

SECTION("xdp") int relay(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethernet *link = data;

	// A frame to a group of link addresses is not for this machine alone. See also `is_for_this_host`.
	if ((void *)(link + 1) > end || link->destination[0] & 1)
		return XDP_PASS;
	if (link->type == NET16(ETHERTYPE_IPV4))
		return received(context, 4);
	if (link->type == NET16(ETHERTYPE_IPV6))
		return received(context, 6);
	return XDP_PASS;
}

// Passes every packet. A veth interface accepts redirected packets only if its other end has a program.
SECTION("xdp") int pass_all(struct xdp_md *context)
{
	return XDP_PASS;
}

SECTION("license") char LICENSE[] = "MIT OR Apache-2.0";
