# The image: immutable bytes that can be read at random, as they lie in a file that may still change.
#
# A file's bytes with patches laid over them: a patch is other bytes (a meta page made anew) or zeros
# (a page that is free, so that its old content never leaves). Knows no database; the page map, where
# one is given, clears what lies unused inside pages that live.

cdef enum:
    HOLE_SIZE_MIN = 64 * 1024    # a patch this long is worth not reading what lies under it
    WRITE_SIZE = 1024 * 1024     # one step towards a Python writer: from here the page cache gives all it has

cdef struct Patch:
    uint64_t offset
    uint64_t length
    char* data                   # NULL: zeros

cdef struct Window               # window.pxi has it

cdef struct ImageState:
    int fd
    int closed
    uint64_t size
    Patch* patches               # sorted, apart from each other, inside the image
    size_t patch_count
    PageMap* page_map            # NULL: the bytes are as the file has them
    Window* window               # for those who read it at the same time


cdef int pread_all(int fd, char* buffer, size_t size, uint64_t offset) noexcept nogil:
    """0, or a negative errno; the end of the file counts as EIO, since the caller knows the size."""
    cdef ssize_t count
    while size:
        count = pread(fd, buffer, size, <off_t>offset)
        if count < 0 and errno == EINTR:
            continue
        if count < 0:
            return -errno
        if count == 0:
            return -EIO
        buffer += count
        offset += count
        size -= count
    return 0


cdef size_t image_patch_after(ImageState* image, uint64_t offset) noexcept nogil:
    """The first patch that ends beyond `offset`."""
    cdef size_t low = 0, high = image.patch_count, middle
    while low < high:
        middle = (low + high) // 2
        if image.patches[middle].offset + image.patches[middle].length <= offset:
            low = middle + 1
        else:
            high = middle
    return low


cdef int image_read_file(ImageState* image, char* buffer, size_t size, uint64_t offset) noexcept nogil:
    """Read what lies under no long patch."""
    cdef size_t number = image_patch_after(image, offset)
    cdef uint64_t at = offset, end = offset + size, hole_start, hole_end
    cdef int code
    while at < end:
        hole_start = hole_end = end
        while number < image.patch_count and image.patches[number].offset < end:
            if image.patches[number].length >= HOLE_SIZE_MIN:
                hole_start = image.patches[number].offset
                hole_end = hole_start + image.patches[number].length
                number += 1
                break
            number += 1
        if hole_start > at:
            code = pread_all(image.fd, buffer + (at - offset), min(hole_start, end) - at, at)
            if code:
                return code
        at = hole_end
    return 0


cdef void image_lay_patches(ImageState* image, char* buffer, size_t size, uint64_t offset) noexcept nogil:
    cdef size_t number = image_patch_after(image, offset)
    cdef uint64_t start, stop, end = offset + size
    cdef Patch* patch
    while number < image.patch_count and image.patches[number].offset < end:
        patch = &image.patches[number]
        start = max(patch.offset, offset)
        stop = min(patch.offset + patch.length, end)
        if patch.data == NULL:
            memset(buffer + (start - offset), 0, stop - start)
        else:
            memcpy(buffer + (start - offset), patch.data + (start - patch.offset), stop - start)
        number += 1


cdef int image_read_pages(ImageState* image, char* buffer, size_t size, uint64_t offset) noexcept nogil:
    """Read a range that starts on a page and ends on one or with the image."""
    cdef int code = image_read_file(image, buffer, size, offset)
    if code:
        return code
    if image.page_map != NULL:
        page_map_scrub(image.page_map, buffer, offset, size)
    image_lay_patches(image, buffer, size, offset)
    return 0


cdef int image_read_torn(ImageState* image, char* buffer, size_t size, uint64_t offset) noexcept nogil:
    """Read a range inside one page, by way of the whole page."""
    cdef uint64_t page_size = page_map_page_size(image.page_map)
    cdef uint64_t page = offset - offset % page_size
    cdef size_t length = min(page_size, image.size - page)
    cdef char* whole = <char*>malloc(length)
    cdef int code
    if whole == NULL:
        return -ENOMEM
    code = image_read_pages(image, whole, length, page)
    if code == 0:
        memcpy(buffer, whole + (offset - page), size)
    free(whole)
    return code


cdef int64_t image_read(ImageState* image, char* buffer, size_t size, uint64_t offset) noexcept nogil:
    """Fill `buffer` from `offset` on, up to the end of the image; a count, or a negative outcome.

    Closing comes before the pin is given back, so bytes that were read while the image was still
    open are the pinned ones; that is looked at after the read.
    """
    cdef size_t head = 0, tail = 0, count
    cdef uint64_t page_size
    cdef int code = 0
    if atomic_read_int(&image.closed):
        return IMAGE_CLOSED
    if offset >= image.size:
        return 0
    count = min(<uint64_t>size, image.size - offset)
    if image.page_map != NULL:
        page_size = page_map_page_size(image.page_map)
        if offset % page_size:
            head = min(<uint64_t>count, page_size - offset % page_size)
        if offset + count < image.size:
            tail = min(count - head, (offset + count) % page_size)
    if head:
        code = image_read_torn(image, buffer, head, offset)
    if code == 0 and count > head + tail:
        code = image_read_pages(image, buffer + head, count - head - tail, offset + head)
    if code == 0 and tail:
        code = image_read_torn(image, buffer + count - tail, tail, offset + count - tail)
    if atomic_read_int(&image.closed):
        return IMAGE_CLOSED
    return code if code else <int64_t>count
