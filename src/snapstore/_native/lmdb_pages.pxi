# The page map of an LMDB environment: which bytes of a data file mean nothing as of one transaction.
#
# Bytes of the file and the two core DB records in, runs to be shown as zeros out. Knows no Python
# object, no environment and no lock; whoever calls keeps the transaction pinned meanwhile. The file
# may be hostile: nothing outside a buffer is touched, no tree is followed for ever, and a page whose
# header makes no sense is an error when it is walked and left as it is when it is scrubbed.
#
# 1. Build (lmdb_walk.pxi): walk the freelist for the free pages, then the trees that have overflow
#    values, to learn where raw bytes lie that carry no page header. A tree without is not read at all.
# 2. Scrub (below): of each page just read, clear what no node uses.
#
# What stays: the one byte that pads an odd node, and keys that live on as separators in branch pages
# after their record was deleted. Both are part of LMDB's live data.
#
# The format is mdb.c's (MDB_page, MDB_node, MDB_db, MDB_ovpage), in data version 1 (LMDB 0.9) and 3
# (LMDB 1.0): there headers have 24 bytes instead of 16, offsets count from behind the header, keys
# fill an even number of bytes, and a node names the page count of its overflow value.

cdef enum:
    LMDB_WRONG = -1101           # the pages contradict themselves; below the range of errno

    LMDB_DEPTH_MAX = 32          # CURSOR_STACK: LMDB itself follows no deeper tree
    LMDB_META_PAGES = 2          # NUM_METAS
    LMDB_DB_SIZE = 48            # sizeof(MDB_db)
    LMDB_NODE_SIZE = 8           # NODESIZE
    LMDB_ID_SIZE = 8             # a page number in a freelist record

    LMDB_BRANCH = 0x01           # P_BRANCH and so on: what a page is
    LMDB_LEAF = 0x02
    LMDB_OVERFLOW = 0x04
    LMDB_LEAF2 = 0x20
    LMDB_SUBPAGE = 0x40
    LMDB_KINDS = 0x6f            # without P_DIRTY, P_LOOSE and P_KEEP, which say nothing on disk

    LMDB_BIGDATA = 0x01          # F_BIGDATA and so on: what a leaf's node holds
    LMDB_SUBDATA = 0x02
    LMDB_DUPDATA = 0x04

    LMDB_DUPSORT = 0x04          # MDB_DUPSORT in a DB record

cdef struct LmdbSpan:            # bytes to be shown as zeros: a run of free pages, starting at a page,
    uint64_t offset              # or the slack of a freelist record, which never does
    uint64_t length

cdef struct LmdbValue:           # an overflow value. 16 bytes for each: 4 MiB for every GiB of 4 KiB values
    uint64_t page
    uint32_t pages
    uint32_t size                # its used bytes, without the page header

cdef struct LmdbTree:            # what is used of an MDB_db
    uint64_t pages               # branch, leaf and overflow pages
    uint64_t overflow_pages
    uint64_t root
    uint16_t flags

cdef struct LmdbHead:            # a page's or sub-page's header, its offsets from the page's start
    uint32_t kind
    uint32_t key_size
    uint32_t keys
    uint32_t lower
    uint32_t upper

cdef struct LmdbNode:
    uint32_t flags
    uint32_t size
    char* data

cdef struct PageMap:
    int fd                       # this and the pulse are used while building only
    Pulse* pulse
    uint32_t page_size
    uint32_t header_size
    uint64_t page_count
    uint64_t free_pages
    uint64_t pages_left          # to be read by the walk: no sound tree names a page twice
    bint has_duplicates          # some DB is DUPSORT, so leaves may hold sub-pages
    char* pages                  # one page for each depth of the walk
    LmdbSpan* zeros              # these three are sorted when the map is built
    size_t zero_count
    LmdbValue* values
    size_t value_count
    LmdbTree* trees              # the named databases
    size_t tree_count

ctypedef int (*LmdbVisit)(
    PageMap* map, const char* page, uint64_t number, const LmdbHead* head
) noexcept nogil


cdef inline uint32_t lmdb_u16(const char* at) noexcept nogil:
    cdef uint16_t number
    memcpy(&number, at, sizeof(number))
    return number


cdef inline uint64_t lmdb_u64(const char* at) noexcept nogil:
    cdef uint64_t number
    memcpy(&number, at, sizeof(number))
    return number


cdef inline uint32_t lmdb_base(uint32_t header_size) noexcept nogil:
    """PAGEBASE: where a page's offsets count from."""
    return 24 if header_size == 24 else 0


cdef inline uint64_t page_map_page_size(const PageMap* map) noexcept nogil:
    return map.page_size


cdef void page_map_free(PageMap* map) noexcept nogil:
    free(map.pages)
    free(map.zeros)
    free(map.values)
    free(map.trees)
    memset(map, 0, sizeof(PageMap))


cdef void* lmdb_grow(void* items, size_t count, size_t item_size) noexcept nogil:
    """Room for one more item; capacities are powers of two, so the count alone tells when one is full."""
    if count & (count - 1):
        return items
    return realloc(items, (count * 2 if count else 1) * item_size)


# ------------------------------------------------------------------------------ reading pages and nodes

cdef bint lmdb_head_read(
    const char* page, uint64_t size, uint32_t header_size, LmdbHead* head
) noexcept nogil:
    """Read and check the header of a page, or of a sub-page of `size` bytes."""
    cdef uint32_t base = lmdb_base(header_size)
    if size < header_size:
        return False
    head.key_size = lmdb_u16(page + header_size - 8)
    head.kind = lmdb_u16(page + header_size - 6) & LMDB_KINDS
    head.lower = base + lmdb_u16(page + header_size - 4)
    head.upper = base + lmdb_u16(page + header_size - 2)
    if not header_size <= head.lower <= head.upper <= size:
        return False
    head.keys = (head.lower - header_size) // 2
    if head.kind & LMDB_LEAF2:
        return <uint64_t>head.keys * head.key_size <= size - header_size
    return True


cdef bint lmdb_node_read(
    const PageMap* map, const char* page, const LmdbHead* head, uint32_t index, LmdbNode* node
) noexcept nogil:
    """Read a leaf's node; its data, or what stands for them, then lie inside the page."""
    cdef uint32_t base = lmdb_base(map.header_size)
    cdef uint32_t at = base + lmdb_u16(page + map.header_size + 2 * index)
    cdef uint32_t key_size
    cdef uint64_t held
    if at < head.upper or at + LMDB_NODE_SIZE > map.page_size:
        return False
    node.size = lmdb_u16(page + at) | lmdb_u16(page + at + 2) << 16
    node.flags = lmdb_u16(page + at + 4)
    key_size = lmdb_u16(page + at + 6)
    at += LMDB_NODE_SIZE + (key_size + 1 & ~1 if base else key_size)
    held = (24 if base else 8) if node.flags & LMDB_BIGDATA else node.size
    node.data = <char*>page + at
    return at + held <= map.page_size


# ------------------------------------------------------------------------------------- scrubbing a piece

cdef void lmdb_sub_page_scrub(const PageMap* map, char* page, uint32_t size) noexcept nogil:
    """Clear what a sub-page, the duplicates of one key inside its node, does not use."""
    cdef LmdbHead head
    cdef uint32_t used
    if not lmdb_head_read(page, size, map.header_size, &head):
        return
    if head.kind == LMDB_LEAF | LMDB_SUBPAGE:
        memset(page + head.lower, 0, head.upper - head.lower)
    elif head.kind == LMDB_LEAF | LMDB_SUBPAGE | LMDB_LEAF2:
        used = map.header_size + head.keys * head.key_size
        memset(page + used, 0, size - used)


cdef void lmdb_page_scrub(const PageMap* map, char* page, uint64_t number) noexcept nogil:
    """Clear what a page of a tree does not use; any other page stays as it is."""
    cdef LmdbHead head
    cdef LmdbNode node
    cdef uint32_t used, index
    if lmdb_u64(page) != number or not lmdb_head_read(page, map.page_size, map.header_size, &head):
        return
    if head.kind == LMDB_LEAF | LMDB_LEAF2:
        used = map.header_size + head.keys * head.key_size
        memset(page + used, 0, map.page_size - used)
        return
    if head.kind != LMDB_BRANCH and head.kind != LMDB_LEAF:
        return
    memset(page + head.lower, 0, head.upper - head.lower)
    if head.kind == LMDB_BRANCH or not map.has_duplicates:
        return
    for index in range(head.keys):
        if not lmdb_node_read(map, page, &head, index, &node):
            return
        if node.flags & (LMDB_BIGDATA | LMDB_SUBDATA | LMDB_DUPDATA) == LMDB_DUPDATA:
            lmdb_sub_page_scrub(map, node.data, node.size)


cdef size_t lmdb_zero_after(const PageMap* map, uint64_t offset) noexcept nogil:
    """The first span that ends beyond `offset`."""
    cdef size_t low = 0, high = map.zero_count, middle
    while low < high:
        middle = (low + high) // 2
        if map.zeros[middle].offset + map.zeros[middle].length <= offset:
            low = middle + 1
        else:
            high = middle
    return low


cdef size_t lmdb_value_after(const PageMap* map, uint64_t page) noexcept nogil:
    """The first value that ends behind `page`."""
    cdef size_t low = 0, high = map.value_count, middle
    while low < high:
        middle = (low + high) // 2
        if map.values[middle].page + map.values[middle].pages <= page:
            low = middle + 1
        else:
            high = middle
    return low


cdef void page_map_scrub(const PageMap* map, char* buffer, uint64_t offset, size_t length) noexcept nogil:
    """Clear what means nothing in a piece of the file that starts and ends at pages.

    Safe from several threads at once; the map is not changed. The meta pages are the caller's.
    """
    cdef uint64_t page_size = map.page_size, at = offset, end = offset + length, stop, used
    cdef size_t zero = lmdb_zero_after(map, offset)
    cdef size_t number = lmdb_value_after(map, offset // page_size)
    cdef LmdbValue* value
    while at + page_size <= end:
        if zero < map.zero_count and map.zeros[zero].offset <= at:
            stop = min(map.zeros[zero].offset + map.zeros[zero].length, end)
            memset(buffer + (at - offset), 0, stop - at)
            at = stop
            zero += 1
            continue
        value = &map.values[number] if number < map.value_count else NULL
        if value != NULL and value.page * page_size <= at:
            stop = min((value.page + value.pages) * page_size, end)
            used = max(at, value.page * page_size + map.header_size + value.size)
            if used < stop:
                memset(buffer + (used - offset), 0, stop - used)
            at = stop
            number += 1
            continue
        if at >= LMDB_META_PAGES * page_size:
            lmdb_page_scrub(map, buffer + (at - offset), at // page_size)
        at += page_size
        while zero < map.zero_count and map.zeros[zero].offset < at:
            # A freelist record's slack, which its page's scrubbing does not see.
            memset(buffer + (map.zeros[zero].offset - offset), 0, map.zeros[zero].length)
            zero += 1


