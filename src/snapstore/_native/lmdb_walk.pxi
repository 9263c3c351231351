# Building the page map of an LMDB environment: the walk over the trees of one pinned transaction.
#
# The format, the structures and the scrubbing stand in lmdb_pages.pxi. Runs once per snapshot, before
# its first byte is read, without the GIL. No sound tree names a page twice or is deeper than LMDB's
# own cursors go, so both are limits here, and a hostile file cannot make the walk run for ever.

cdef int lmdb_page_load(PageMap* map, char* page, uint64_t number, LmdbHead* head) noexcept nogil:
    """Read a page of a tree; 0, LMDB_WRONG or another negative outcome."""
    cdef int code
    if not LMDB_META_PAGES <= number < map.page_count or map.pages_left == 0:
        return LMDB_WRONG
    map.pages_left -= 1
    code = pulse_check(map.pulse)
    if code:
        return code
    code = pread_all(map.fd, page, map.page_size, number * map.page_size)
    if code:
        return code
    if lmdb_u64(page) != number or not lmdb_head_read(page, map.page_size, map.header_size, head):
        return LMDB_WRONG
    return 0 if head.kind == LMDB_BRANCH or head.kind == LMDB_LEAF else LMDB_WRONG


cdef int lmdb_child(const PageMap* map, const char* page, uint32_t index, uint64_t* number) noexcept nogil:
    """The page that a branch's node points to."""
    cdef uint32_t at = lmdb_base(map.header_size) + lmdb_u16(page + map.header_size + 2 * index)
    if at + LMDB_NODE_SIZE > map.page_size:
        return LMDB_WRONG
    number[0] = lmdb_u64(page + at) << 16 >> 16
    return 0


cdef int lmdb_walk(PageMap* map, uint64_t root, LmdbVisit visit) noexcept nogil:
    """Call `visit` for each leaf of a tree, in order; 0, or the first other outcome."""
    cdef LmdbHead heads[LMDB_DEPTH_MAX]
    cdef uint64_t numbers[LMDB_DEPTH_MAX]
    cdef uint32_t nexts[LMDB_DEPTH_MAX]
    cdef int depth = 0, code
    cdef char* page = map.pages
    if root == <uint64_t>-1:     # P_INVALID: an empty tree
        return 0
    numbers[0] = root
    nexts[0] = 0
    code = lmdb_page_load(map, page, root, &heads[0])
    while code == 0 and depth >= 0:
        page = map.pages + <size_t>depth * map.page_size
        if heads[depth].kind == LMDB_LEAF:
            code = visit(map, page, numbers[depth], &heads[depth])
            depth -= 1
        elif nexts[depth] == heads[depth].keys:
            depth -= 1
        elif depth + 1 == LMDB_DEPTH_MAX:
            code = LMDB_WRONG
        else:
            code = lmdb_child(map, page, nexts[depth], &numbers[depth + 1])
            nexts[depth] += 1
            depth += 1
            nexts[depth] = 0
            if code == 0:
                code = lmdb_page_load(map, page + map.page_size, numbers[depth], &heads[depth])
    return code


# ------------------------------------------------------------------------------------- building the map

cdef int lmdb_zeros_add(PageMap* map, uint64_t offset, uint64_t length) noexcept nogil:
    cdef void* grown = lmdb_grow(map.zeros, map.zero_count, sizeof(LmdbSpan))
    if grown == NULL:
        return -ENOMEM
    map.zeros = <LmdbSpan*>grown
    map.zeros[map.zero_count].offset = offset
    map.zeros[map.zero_count].length = length
    map.zero_count += 1
    return 0


cdef int lmdb_value_add(PageMap* map, const LmdbNode* node) noexcept nogil:
    """Note the overflow value that a node points to."""
    cdef LmdbValue* value
    cdef uint64_t page = lmdb_u64(node.data)
    cdef uint64_t needed = (map.header_size - 1 + <uint64_t>node.size) // map.page_size + 1
    cdef uint64_t pages = lmdb_u64(node.data + 16) if map.header_size == 24 else needed
    cdef void* grown
    if page < LMDB_META_PAGES or page >= map.page_count or not needed <= pages <= map.page_count - page:
        return LMDB_WRONG
    if pages != <uint32_t>pages:
        return LMDB_WRONG
    grown = lmdb_grow(map.values, map.value_count, sizeof(LmdbValue))
    if grown == NULL:
        return -ENOMEM
    map.values = <LmdbValue*>grown
    value = &map.values[map.value_count]
    value.page = page
    value.pages = <uint32_t>pages
    value.size = node.size
    map.value_count += 1
    return 0


cdef int lmdb_ids_add(PageMap* map, const char* ids, uint32_t size, uint32_t* used) noexcept nogil:
    """Note the free pages of a freelist record: a count, then page numbers, the highest first."""
    cdef uint64_t count, number, index, page_size = map.page_size
    cdef LmdbSpan* last
    cdef int code = 0
    if size < LMDB_ID_SIZE:
        return LMDB_WRONG
    count = lmdb_u64(ids)
    if count > size // LMDB_ID_SIZE - 1:
        return LMDB_WRONG
    for index in range(1, count + 1):
        number = lmdb_u64(ids + index * LMDB_ID_SIZE)
        if not LMDB_META_PAGES <= number < map.page_count:
            return LMDB_WRONG
        last = &map.zeros[map.zero_count - 1] if map.zero_count else NULL
        if last != NULL and last.offset == (number + 1) * page_size:
            last.offset -= page_size
            last.length += page_size
        else:
            code = lmdb_zeros_add(map, number * page_size, page_size)
            if code:
                return code
    map.free_pages += count
    used[0] = <uint32_t>((1 + count) * LMDB_ID_SIZE)
    return 0


cdef int lmdb_visit_free(
    PageMap* map, const char* page, uint64_t number, const LmdbHead* head
) noexcept nogil:
    """A leaf of the freelist. What a record holds behind its ids was never cleared by LMDB."""
    cdef uint32_t index, used = 0
    cdef int code = 0
    cdef LmdbNode node
    cdef LmdbValue* value
    cdef char* ids
    for index in range(head.keys):
        if not lmdb_node_read(map, page, head, index, &node):
            return LMDB_WRONG
        if node.flags & LMDB_BIGDATA:
            code = lmdb_value_add(map, &node)
            if code:
                return code
            value = &map.values[map.value_count - 1]
            if node.size > map.page_count * map.page_size:
                return LMDB_WRONG    # more than the file has: nothing to take memory for
            ids = <char*>malloc(max(node.size, 1))
            if ids == NULL:
                return -ENOMEM
            code = pread_all(map.fd, ids, node.size, value.page * map.page_size + map.header_size)
            if code == 0:
                code = lmdb_ids_add(map, ids, node.size, &used)
                value.size = used
            free(ids)
        else:
            code = lmdb_ids_add(map, node.data, node.size, &used)
            if code == 0 and used < node.size:
                code = lmdb_zeros_add(
                    map, number * map.page_size + (node.data - page) + used, node.size - used
                )
        if code:
            return code
    return 0


cdef int lmdb_visit_data(
    PageMap* map, const char* page, uint64_t number, const LmdbHead* head
) noexcept nogil:
    """A leaf of the main DB or of a named one: overflow values and, in the main DB, named databases."""
    cdef uint32_t index
    cdef int code = 0
    cdef LmdbNode node
    cdef void* grown
    for index in range(head.keys):
        if not lmdb_node_read(map, page, head, index, &node):
            return LMDB_WRONG
        if node.flags & LMDB_BIGDATA:
            code = lmdb_value_add(map, &node)
        elif node.flags & (LMDB_SUBDATA | LMDB_DUPDATA) == LMDB_SUBDATA:
            if node.size != LMDB_DB_SIZE:
                return LMDB_WRONG
            grown = lmdb_grow(map.trees, map.tree_count, sizeof(LmdbTree))
            if grown == NULL:
                return -ENOMEM
            map.trees = <LmdbTree*>grown
            lmdb_tree_read(node.data, &map.trees[map.tree_count])
            map.tree_count += 1
        if code:
            return code
    return 0


cdef void lmdb_tree_read(const char* record, LmdbTree* tree) noexcept nogil:
    tree.flags = <uint16_t>lmdb_u16(record + 4)
    tree.overflow_pages = lmdb_u64(record + 24)
    tree.pages = lmdb_u64(record + 8) + lmdb_u64(record + 16) + tree.overflow_pages
    tree.root = lmdb_u64(record + 40)


cdef int lmdb_values_measure(PageMap* map, size_t first, uint64_t pages) noexcept nogil:
    """Learn the true page counts of one tree's overflow values, from `first` on.

    Format 1 keeps a value's page count only in front of the value, and it is larger than its size
    needs where a transaction put a smaller value in its place. The tree's own count of overflow
    pages tells whether there is such a one; seldom is, and then no value need be looked at.
    """
    cdef uint64_t counted = 0
    cdef size_t index
    cdef char head[16]
    cdef uint32_t held
    cdef int code
    cdef LmdbValue* value
    for index in range(first, map.value_count):
        counted += map.values[index].pages
    if counted == pages or map.header_size != sizeof(head):
        return 0
    for index in range(first, map.value_count):
        value = &map.values[index]
        code = pread_all(map.fd, head, sizeof(head), value.page * map.page_size)
        if code:
            return code
        memcpy(&held, &head[12], sizeof(held))
        if lmdb_u64(head) != value.page or not lmdb_u16(&head[10]) & LMDB_OVERFLOW:
            return LMDB_WRONG
        if not value.pages <= held <= map.page_count - value.page:
            return LMDB_WRONG
        value.pages = held
    return 0


cdef int lmdb_tree_map(PageMap* map, const LmdbTree* tree, LmdbVisit visit) noexcept nogil:
    cdef size_t first = map.value_count
    cdef int code = lmdb_walk(map, tree.root, visit)
    return code if code else lmdb_values_measure(map, first, tree.overflow_pages)


cdef int lmdb_span_order(const void* left, const void* right) noexcept nogil:
    cdef uint64_t a = (<const LmdbSpan*>left).offset, b = (<const LmdbSpan*>right).offset
    return (a > b) - (a < b)


cdef int lmdb_value_order(const void* left, const void* right) noexcept nogil:
    cdef uint64_t a = (<const LmdbValue*>left).page, b = (<const LmdbValue*>right).page
    return (a > b) - (a < b)


cdef int lmdb_map_sort(PageMap* map) noexcept nogil:
    """Sort both lists, join free pages that touch, and refuse any byte that is claimed twice."""
    cdef uint64_t page_size = map.page_size, end = 0, start
    cdef size_t index, kept = 0, zero = 0
    cdef LmdbSpan* span
    cdef LmdbSpan* last
    if map.zero_count:
        qsort(map.zeros, map.zero_count, sizeof(LmdbSpan), lmdb_span_order)
    if map.value_count:
        qsort(map.values, map.value_count, sizeof(LmdbValue), lmdb_value_order)
    for index in range(map.zero_count):
        span = &map.zeros[index]
        last = &map.zeros[kept - 1] if kept else NULL
        if span.offset < end:
            return LMDB_WRONG
        if last != NULL and span.offset == end and last.offset % page_size == 0:
            last.length += span.length
        else:
            map.zeros[kept] = span[0]
            kept += 1
        end = span.offset + span.length
    map.zero_count = kept
    end = 0
    for index in range(map.value_count):
        start = map.values[index].page * page_size
        if start < end:
            return LMDB_WRONG
        end = start + map.values[index].pages * page_size
        while zero < map.zero_count and map.zeros[zero].offset + map.zeros[zero].length <= start:
            zero += 1
        if zero < map.zero_count and map.zeros[zero].offset < end:
            return LMDB_WRONG
    return 0


cdef int lmdb_map_trees(PageMap* map, const LmdbTree* free_tree, const LmdbTree* main) noexcept nogil:
    """Walk what must be walked.

    The main DB of a node without named databases may hold gigabytes of small values; it need not be
    read when its own pages and the freelist already account for the whole file, since then there is
    no page left that a named database could have.
    """
    cdef int code = lmdb_tree_map(map, free_tree, lmdb_visit_free)
    cdef size_t index
    cdef uint64_t known = LMDB_META_PAGES + map.free_pages + free_tree.pages + main.pages
    if code == 0 and (main.overflow_pages or (known != map.page_count and not main.flags & LMDB_DUPSORT)):
        code = lmdb_tree_map(map, main, lmdb_visit_data)
    map.has_duplicates = main.flags & LMDB_DUPSORT != 0
    for index in range(map.tree_count):
        if code:
            break
        map.has_duplicates = map.has_duplicates or map.trees[index].flags & LMDB_DUPSORT != 0
        if map.trees[index].overflow_pages:
            code = lmdb_tree_map(map, &map.trees[index], lmdb_visit_data)
    return code if code else lmdb_map_sort(map)


cdef int page_map_build(
    PageMap* map, int fd, uint32_t page_size, uint32_t header_size,
    const char* free_record, const char* main_record, uint64_t page_count, Pulse* pulse,
) noexcept nogil:
    """Build the map of the pages before `page_count`; 0, LMDB_WRONG or another negative outcome.

    `map` is zeroed memory; the caller frees it whatever comes back. Neither `fd` nor `pulse` is used
    afterwards.
    """
    cdef LmdbTree free_tree, main
    cdef int code
    map.fd = fd
    map.pulse = pulse
    map.page_size = page_size
    map.header_size = header_size
    map.page_count = map.pages_left = page_count
    map.pages = <char*>malloc(<size_t>LMDB_DEPTH_MAX * page_size)
    if map.pages == NULL:
        return -ENOMEM
    lmdb_tree_read(free_record, &free_tree)
    lmdb_tree_read(main_record, &main)
    code = lmdb_map_trees(map, &free_tree, &main)
    free(map.pages)
    map.pages = NULL
    free(map.trees)
    map.trees = NULL
    return code


# --------------------------------------------------------------------------------------- the Python face

cdef class LmdbPageMap:
    """Which bytes of an LMDB data file mean nothing as of one transaction; for an `Image`.

    Read from `fd` once, here, without the GIL; `fd` is not kept. `free_db` and `main_db` are the
    48-byte DB records of the transaction's meta page. The transaction must stay pinned meanwhile.
    Raises SnapshotCorrupt when the pages contradict themselves.
    """
    cdef PageMap* map

    def __cinit__(
        self, int fd, uint32_t page_size, uint32_t header_size,
        bytes free_db not None, bytes main_db not None, uint64_t last_page,
    ):
        cdef const char* free_record = free_db
        cdef const char* main_record = main_db
        cdef Pulse pulse
        cdef int code
        if page_size & (page_size - 1) or not 256 <= page_size <= 65536 or header_size not in (16, 24):
            raise ValueError(f"no LMDB format has pages of {page_size} bytes with headers of {header_size}")
        if len(free_db) != LMDB_DB_SIZE or len(main_db) != LMDB_DB_SIZE:
            raise ValueError(f"a DB record has {LMDB_DB_SIZE} bytes")
        if not 1 <= last_page < (1 << 47):
            raise ValueError(f"the last page cannot be {last_page}")
        self.map = <PageMap*>calloc(1, sizeof(PageMap))
        if self.map == NULL:
            raise MemoryError
        pulse_start(&pulse, None, None)
        with nogil:
            code = page_map_build(
                self.map, fd, page_size, header_size, free_record, main_record, last_page + 1, &pulse
            )
        if code == LMDB_WRONG:
            raise SnapshotCorrupt("the pages of the LMDB data file contradict themselves; it is damaged")
        if code:
            raise_outcome(code, None, 0, 0)

    def __dealloc__(self):
        if self.map != NULL:
            page_map_free(self.map)
        free(self.map)

    @property
    def page_size(self):
        """In bytes."""
        return self.map.page_size

    @property
    def overflow_values(self):
        """How many values lie on pages of their own, the freelist's records included."""
        return self.map.value_count

    @property
    def pages_walked(self):
        """How many pages of trees had to be read to build it."""
        return self.map.page_count - self.map.pages_left

    def zero_runs(self, uint64_t length_min=0):
        """The free pages as sorted (offset, length) in bytes, of `length_min` bytes or more."""
        return [
            (self.map.zeros[index].offset, self.map.zeros[index].length)
            for index in range(self.map.zero_count)
            if self.map.zeros[index].offset % self.map.page_size == 0
            and self.map.zeros[index].length >= length_min
        ]
