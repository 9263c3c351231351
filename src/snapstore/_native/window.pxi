# The window: what several transfers of one image read at about the same time is read once.
#
# One slot for each of some blocks in a row. Whoever comes first to a block reads it into its slot, the
# others copy it from there: there is no thread that reads for them, and none of them is special. The first
# may be ahead of the last by all the slots. Then it waits for him, but not for long: who costs the others
# more than his due is left behind, and reads on his own until he has come up again. So does who is alone.

cdef enum:
    BLOCK_SIZE = 256 * 1024      # what is read at once for all: fits the cache of one core
    WINDOW_BLOCKS = 128          # 32 MiB: what passes over 1 Gbit/s in 1/4 s, within which transfers begin

    # How long others may wait for one who is slower: so long at once, as jitter does, and one part in so
    # many of all the time. Nobody loses more than 5 % of his speed to a follower with a slow disk.
    HOLD_NS = 100 * 1000 * 1000
    HOLD_SHARE = 20

cdef enum WindowAnswer:
    WINDOW_ALONE                 # not in the window: read on your own
    WINDOW_FILL                  # the slot is yours: read the block for all
    WINDOW_COPY                  # the block is there, and stays while you copy
    WINDOW_WAIT                  # somebody is at work on the slot
    WINDOW_HELD                  # somebody who may still be waited for has not had what the slot has

cdef struct WindowSlot:
    uint64_t block
    int state                    # SLOT_FREE, SLOT_FILLING or SLOT_READY
    uint32_t copying

cdef struct Seat:
    Seat* next
    Window* window               # NULL before the first read, and after the last
    uint64_t block               # that it reads next
    bint holds                   # somebody waits for it
    int64_t held_ns              # how long others have waited for it, less what was due
    int64_t held_at_ns           # when that was so

cdef struct Window:
    pthread_mutex_t mutex
    pthread_cond_t changed
    char* memory                 # NULL until it is needed
    WindowSlot slots[WINDOW_BLOCKS]
    uint64_t head                # the block after the last one that anybody inside has come to: the slots
                                 # are of those before it, and inside is who reads one of them next, or it
    Seat* seats
    uint64_t bytes_read          # from the image, by all that ever sat here


cdef Window* window_new() noexcept nogil:
    cdef Window* window = <Window*>calloc(1, sizeof(Window))
    if window != NULL:
        monotonic_init(&window.mutex, &window.changed)
    return window


cdef void window_free(Window* window) noexcept nogil:
    """Frees and never waits: nobody may have a seat any more."""
    if window == NULL:
        return
    if window.memory != NULL:
        munmap(window.memory, WINDOW_BLOCKS * BLOCK_SIZE)
    pthread_cond_destroy(&window.changed)
    pthread_mutex_destroy(&window.mutex)
    free(window)


cdef void seat_hold(Seat* seat, bint holds) noexcept nogil:
    """From now on somebody waits for it, or nobody does; what was waited until now is on its account."""
    cdef int64_t now = now_ns(), passed = now - seat.held_at_ns
    seat.held_ns = max(<int64_t>0, seat.held_ns - passed // HOLD_SHARE) + (passed if seat.holds else 0)
    seat.held_at_ns = now
    seat.holds = holds


cdef void seat_move(Seat* seat, uint64_t block) noexcept nogil:
    if seat.holds and seat.block != block:
        seat_hold(seat, False)
    seat.block = block


cdef void window_join(Window* window, Seat* seat, uint64_t block) noexcept nogil:
    pthread_mutex_lock(&window.mutex)
    seat.window = window
    seat.block = block
    seat.held_at_ns = now_ns()
    seat.next = window.seats
    window.seats = seat
    pthread_mutex_unlock(&window.mutex)


cdef void window_leave(Seat* seat) noexcept nogil:
    """The end of a transfer, or of what it wants of the image; the last one gives the memory back."""
    cdef Window* window = seat.window
    cdef Seat** at
    cdef Seat* other
    if window == NULL:
        return
    pthread_mutex_lock(&window.mutex)
    at = &window.seats
    while at[0] != seat:
        at = &at[0].next
    at[0] = seat.next
    seat.window = NULL
    if window.seats == NULL and window.memory != NULL:
        munmap(window.memory, WINDOW_BLOCKS * BLOCK_SIZE)
        window.memory = NULL
        memset(window.slots, 0, sizeof(window.slots))
    # It may be the one who waited. Who still waits is woken here, and says so again.
    other = window.seats
    while other != NULL:
        if other.holds:
            seat_hold(other, False)
        other = other.next
    pthread_cond_broadcast(&window.changed)
    pthread_mutex_unlock(&window.mutex)


cdef bint window_spans(Window* window, uint64_t block) noexcept nogil:
    return block <= window.head <= block + WINDOW_BLOCKS


cdef bint window_peopled(Window* window) noexcept nogil:
    cdef Seat* seat = window.seats
    while seat != NULL and not window_spans(window, seat.block):
        seat = seat.next
    return seat != NULL


cdef bint window_has_memory(Window* window) noexcept nogil:
    cdef void* memory
    if window.memory == NULL:
        memory = mmap(NULL, WINDOW_BLOCKS * BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        window.memory = NULL if memory == MAP_FAILED else <char*>memory
    return window.memory != NULL


cdef bint window_is_held(Window* window) noexcept nogil:
    """Whether the slot of the head has what somebody wants next who may still be waited for."""
    cdef Seat* other = window.seats
    cdef bint held = False
    while other != NULL:
        # Who is further behind has lost it already, and to wait would not bring it back.
        if other.block + WINDOW_BLOCKS == window.head:
            seat_hold(other, True)
            other.holds = other.held_ns < HOLD_NS
            held = held or other.holds
        other = other.next
    return held


cdef WindowAnswer window_ask(Window* window, Seat* seat, uint64_t block) noexcept nogil:
    """What to do for `block`; the mutex is held."""
    cdef WindowSlot* slot = &window.slots[block % WINDOW_BLOCKS]
    cdef bint alone = window.seats == seat and seat.next == NULL
    seat_move(seat, block)
    if alone:
        # The window goes along, for whoever comes.
        window.head = block + 1
    elif not window_spans(window, block):
        if window_peopled(window):
            return WINDOW_ALONE
        window.head = block
    if slot.state == SLOT_READY and slot.block == block:
        slot.copying += 1
        return WINDOW_COPY
    if alone or not window_has_memory(window):
        return WINDOW_ALONE
    if slot.state == SLOT_FILLING or slot.copying:
        return WINDOW_WAIT
    if block == window.head:
        if window_is_held(window):
            return WINDOW_HELD
        window.head += 1
    # Else whoever was to read it has failed, or was alone.
    slot.block = block
    slot.state = SLOT_FILLING
    return WINDOW_FILL


cdef int64_t window_fill(ImageState* image, WindowSlot* slot, char* memory) noexcept nogil:
    """Read the slot's block for all; its length, or an outcome, and then the next one may try."""
    cdef Window* window = image.window
    cdef int64_t count = image_read(image, memory, BLOCK_SIZE, slot.block * BLOCK_SIZE)
    pthread_mutex_lock(&window.mutex)
    slot.state = SLOT_READY if count >= 0 else SLOT_FREE
    slot.copying = count >= 0
    pthread_cond_broadcast(&window.changed)
    pthread_mutex_unlock(&window.mutex)
    if count > 0:
        atomic_add_u64(&window.bytes_read, count)
    return count


cdef int window_enter(ImageState* image, Seat* seat, uint64_t block, Pulse* pulse) noexcept nogil:
    """What to do for `block`, without a wait any more: a WindowAnswer, or a negative outcome."""
    cdef Window* window = image.window
    cdef WindowAnswer answer
    cdef int code
    while not atomic_read_int(&image.closed):
        pthread_mutex_lock(&window.mutex)
        answer = window_ask(window, seat, block)
        if answer == WINDOW_WAIT or answer == WINDOW_HELD:
            wait_slice(&window.changed, &window.mutex)
        pthread_mutex_unlock(&window.mutex)
        if answer != WINDOW_WAIT and answer != WINDOW_HELD:
            return answer
        code = pulse_check(pulse)
        if code:
            return code
    return IMAGE_CLOSED


cdef int64_t window_copy(ImageState* image, WindowSlot* slot, bint fills, char* buffer, size_t size,
                         uint64_t offset) noexcept nogil:
    """Some bytes from `offset` on out of its slot, which is this one's to fill first or there already."""
    cdef char* memory = image.window.memory + (offset // BLOCK_SIZE % WINDOW_BLOCKS) * BLOCK_SIZE
    cdef int64_t count = window_fill(image, slot, memory) if fills else 0
    if count < 0:
        return count
    count = min(size, BLOCK_SIZE - offset % BLOCK_SIZE)
    memcpy(buffer, memory + offset % BLOCK_SIZE, count)
    return count


cdef int64_t window_read(ImageState* image, Seat* seat, char* buffer, size_t size, uint64_t offset,
                         Pulse* pulse) noexcept nogil:
    """Some bytes from `offset` on, `size` at most, together with whoever else reads there.

    A count, or a negative outcome. Up to the end of the image and not beyond: `image_read` is for that.
    """
    cdef Window* window = image.window
    cdef uint64_t block = offset // BLOCK_SIZE
    cdef WindowSlot* slot = &window.slots[block % WINDOW_BLOCKS]
    cdef int64_t count
    cdef int answer
    if seat.window == NULL:
        window_join(window, seat, block)
    answer = window_enter(image, seat, block, pulse)
    if answer < 0:
        return answer
    if answer == WINDOW_ALONE:
        count = image_read(image, buffer, size, offset)
        if count > 0:
            atomic_add_u64(&window.bytes_read, count)
    else:
        count = window_copy(image, slot, answer == WINDOW_FILL, buffer, size, offset)
    if count < 0:
        return count
    pthread_mutex_lock(&window.mutex)
    if answer != WINDOW_ALONE:
        slot.copying -= 1
    seat_move(seat, (offset + count) // BLOCK_SIZE)
    pthread_cond_broadcast(&window.changed)
    pthread_mutex_unlock(&window.mutex)
    return count
