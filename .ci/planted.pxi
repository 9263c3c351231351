

# Faults for `.ci/sanitize` to find, in the very module that it tests. No part of the package.

cdef extern from *:
    """
    static int planted_shared;
    static void *planted_writer(void *unused) {
        for (int turn = 0; turn < 1000; turn++) planted_shared++;
        return unused;
    }
    """
    void* planted_writer(void* unused) noexcept nogil


def planted(kind):
    """Do what the sanitizer of this name must report."""
    cdef char* memory = <char*>malloc(100)
    cdef volatile int length = 100
    cdef volatile int number = 2147483647
    cdef pthread_t thread
    if kind == "overflow":
        memory[length] = 1
    elif kind == "use-after-free":
        free(memory)
        return memory[0]
    elif kind == "undefined":
        number = number + length
    elif kind == "race":
        pthread_create(&thread, NULL, planted_writer, NULL)
        planted_writer(NULL)
        pthread_join(thread, NULL)
    if kind != "leak":
        free(memory)
    return number
