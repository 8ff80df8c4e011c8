/* malloc and its relatives over the heap that the library gives. The heap is cut into chunks that lie against each
 * other; each begins with a header that holds its own size and that of the chunk before it, so both neighbours of a
 * freed chunk are found in one step. Free chunks hang in bins by size. What lies above the last chunk has never been
 * a chunk, or was merged back: it is cut from when no bin serves, and never touched before, so that a large heap costs
 * nothing until it is used. */
#include "runtime.h"

struct chunk {
    size_t previous; /* size of the chunk just below, 0 at the bottom of the heap */
    size_t size;     /* bytes of header and payload, a multiple of 16; bit 0: in use */
    struct chunk *next_free, *previous_free; /* only in free chunks */
};

enum {
    in_use = 1,
    header_size = 16,
    smallest_chunk = 32,
    granule = 16,
    bin_count = 64,
    first_wide_bin = 32, /* below it one size per bin: 0, 16 ... 496; from it on one power of two per bin */
};

static struct {
    uint8_t *bottom, *top, *end; /* the heap, and the end of its last chunk */
    uint8_t *touched;            /* above this, every byte is still zero */
    size_t last;                 /* size of the chunk just below top */
    uint64_t filled;             /* one bit for each bin that is not empty */
    struct chunk *bins[bin_count];
} heap;

static size_t size_of(const struct chunk *chunk) {
    return chunk->size & ~(size_t)in_use;
}

static struct chunk *chunk_above(struct chunk *chunk) {
    return (struct chunk *)((uint8_t *)chunk + size_of(chunk));
}

static unsigned bin_of(size_t size) {
    if (size < first_wide_bin * granule)
        return (unsigned)(size / granule);
    unsigned power = 63u - (unsigned)__builtin_clzl(size); /* 9 and more */
    unsigned bin = first_wide_bin + power - 9;
    return bin < bin_count ? bin : bin_count - 1;
}

static void insert(struct chunk *chunk) {
    unsigned bin = bin_of(chunk->size);
    chunk->previous_free = NULL;
    chunk->next_free = heap.bins[bin];
    if (chunk->next_free)
        chunk->next_free->previous_free = chunk;
    heap.bins[bin] = chunk;
    heap.filled |= 1ull << bin;
}

static void unlink(struct chunk *chunk) {
    unsigned bin = bin_of(chunk->size);
    if (chunk->previous_free)
        chunk->previous_free->next_free = chunk->next_free;
    else
        heap.bins[bin] = chunk->next_free;
    if (chunk->next_free)
        chunk->next_free->previous_free = chunk->previous_free;
    if (!heap.bins[bin])
        heap.filled &= ~(1ull << bin);
}

static void set_size_below(uint8_t *address, size_t size) {
    if (address == heap.top)
        heap.last = size;
    else
        ((struct chunk *)address)->previous = size;
}

static void prepare(void) {
    struct microvm_span span = microvm_heap();
    uintptr_t base = (uintptr_t)span.base;
    heap.bottom = heap.top = heap.touched = (uint8_t *)((base + granule - 1) & ~(uintptr_t)(granule - 1));
    heap.end = (uint8_t *)((base + span.length) & ~(uintptr_t)(granule - 1));
}

/* Bytes that a chunk needs for a payload of `size`, or 0 when no heap can have them. */
static size_t chunk_size(size_t size) {
    if (size > PTRDIFF_MAX - 4096)
        return 0;
    size = (size + header_size + granule - 1) & ~(size_t)(granule - 1);
    return size < smallest_chunk ? smallest_chunk : size;
}

/* Makes a free chunk of these bytes, merged with what is free around it. */
static void release(uint8_t *address, size_t size, size_t previous) {
    if (previous) {
        struct chunk *below = (struct chunk *)(address - previous);
        if (!(below->size & in_use)) {
            unlink(below);
            address -= previous;
            size += previous;
            previous = below->previous;
        }
    }
    if (address + size != heap.top) {
        struct chunk *above = (struct chunk *)(address + size);
        if (!(above->size & in_use)) {
            unlink(above);
            size += above->size;
        }
    }
    if (address + size == heap.top) {
        heap.top = address;
        heap.last = previous;
        return;
    }
    struct chunk *chunk = (struct chunk *)address;
    chunk->previous = previous;
    chunk->size = size;
    set_size_below(address + size, size);
    insert(chunk);
}

/* Gives back what a chunk in use has beyond `size` bytes, if that is enough for a chunk. */
static void trim(struct chunk *chunk, size_t size) {
    size_t rest = size_of(chunk) - size;
    if (rest < smallest_chunk)
        return;
    chunk->size = size | in_use;
    release((uint8_t *)chunk + size, rest, size);
}

static struct chunk *take_from_bins(size_t size) {
    unsigned bin = bin_of(size);
    uint64_t candidates = heap.filled & (~0ull << bin);
    while (candidates) {
        bin = (unsigned)__builtin_ctzl(candidates);
        for (struct chunk *chunk = heap.bins[bin]; chunk; chunk = chunk->next_free) {
            if (chunk->size < size)
                continue; /* only in the first bin tried, when it is a wide one, or in the last */
            unlink(chunk);
            chunk->size |= in_use;
            trim(chunk, size);
            return chunk;
        }
        candidates &= candidates - 1;
    }
    return NULL;
}

/* Whether there are so many bytes above the last chunk, or the host lets the heap grow by what is missing. */
static bool has_room(size_t size) {
    size_t left = (size_t)(heap.end - heap.top);
    if (left >= size)
        return true;
    size_t page = 4096, step = 64 * 1024;
    size_t missing = (size - left + page - 1) & ~(page - 1);
    size_t more = (missing + step - 1) & ~(step - 1); /* not a host call for each page */
    uint8_t *end = microvm_heap_grow(more);
    if (!end)
        end = microvm_heap_grow(more = missing);
    if (!end)
        return false;
    heap.end = end + more; /* the host may have let it grow before, too */
    return true;
}

static struct chunk *take_from_top(size_t size) {
    if (!has_room(size))
        return NULL;
    struct chunk *chunk = (struct chunk *)heap.top;
    chunk->previous = heap.last;
    chunk->size = size | in_use;
    heap.top += size;
    heap.last = size;
    if (heap.touched < heap.top)
        heap.touched = heap.top;
    return chunk;
}

static void *allocate(size_t size, bool zeroed) {
    if (!heap.end)
        prepare();
    size_t needed = chunk_size(size);
    uint8_t *clean = heap.touched;
    struct chunk *chunk = needed ? take_from_bins(needed) : NULL;
    if (!chunk && needed)
        chunk = take_from_top(needed);
    if (!chunk) {
        errno = ENOMEM;
        return NULL;
    }
    uint8_t *payload = (uint8_t *)chunk + header_size;
    if (zeroed && payload < clean)
        memset(payload, 0, size < (size_t)(clean - payload) ? size : (size_t)(clean - payload));
    return payload;
}

static struct chunk *chunk_of(void *block, const char *caller) {
    struct chunk *chunk = (struct chunk *)((uint8_t *)block - header_size);
    uint8_t *address = (uint8_t *)chunk;
    bool valid = heap.end && (uintptr_t)block % granule == 0 && address >= heap.bottom
        && address + smallest_chunk <= heap.top && (chunk->size & in_use) && size_of(chunk) >= smallest_chunk
        && size_of(chunk) <= (size_t)(heap.top - address);
    if (valid) {
        uint8_t *above = address + size_of(chunk);
        valid = (above == heap.top ? heap.last : ((struct chunk *)above)->previous) == size_of(chunk);
    }
    if (!valid)
        runtime_abort("%s: %p was not allocated, was freed before, or was written beyond its end", caller, block);
    return chunk;
}

void *malloc(size_t size) {
    return allocate(size, false);
}

void *calloc(size_t count, size_t size) {
    size_t total;
    if (__builtin_mul_overflow(count, size, &total))
        total = SIZE_MAX;
    return allocate(total, true);
}

void free(void *block) {
    if (!block)
        return;
    struct chunk *chunk = chunk_of(block, "free");
    size_t size = size_of(chunk);
    chunk->size = size; /* a second free finds it no longer in use, even when it is merged away */
    release((uint8_t *)chunk, size, chunk->previous);
}

/* Grows a chunk in use over the free memory above it; false when there is not enough. */
static bool grow(struct chunk *chunk, size_t needed) {
    size_t more = needed - size_of(chunk);
    struct chunk *above = chunk_above(chunk);
    if ((uint8_t *)above == heap.top) {
        if (!has_room(more))
            return false;
        heap.top += more;
        heap.last = needed;
        chunk->size = needed | in_use;
        if (heap.touched < heap.top)
            heap.touched = heap.top;
        return true;
    }
    if ((above->size & in_use) || above->size < more)
        return false;
    unlink(above);
    chunk->size += above->size;
    set_size_below((uint8_t *)chunk_above(chunk), size_of(chunk));
    trim(chunk, needed);
    return true;
}

void *realloc(void *block, size_t size) {
    if (!block)
        return malloc(size);
    if (!size) {
        free(block);
        return NULL;
    }
    struct chunk *chunk = chunk_of(block, "realloc");
    size_t needed = chunk_size(size);
    if (needed && needed <= size_of(chunk)) {
        trim(chunk, needed);
        return block;
    }
    if (needed && grow(chunk, needed))
        return block;
    void *copy = malloc(size);
    if (!copy)
        return NULL;
    memcpy(copy, block, size_of(chunk) - header_size);
    free(block);
    return copy;
}

void *reallocarray(void *block, size_t count, size_t size) {
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(block, total);
}

size_t malloc_usable_size(void *block) {
    return block ? size_of(chunk_of(block, "malloc_usable_size")) - header_size : 0;
}

void *memalign(size_t alignment, size_t size) {
    if (alignment & (alignment - 1)) {
        errno = EINVAL;
        return NULL;
    }
    if (alignment <= granule)
        return malloc(size);
    size_t padded;
    if (__builtin_add_overflow(size, alignment + smallest_chunk, &padded))
        padded = SIZE_MAX;
    uint8_t *block = malloc(padded);
    if (!block)
        return NULL;
    struct chunk *chunk = (struct chunk *)(block - header_size);
    uintptr_t aligned = ((uintptr_t)block + alignment - 1) & ~(alignment - 1);
    if (aligned != (uintptr_t)block) {
        if (aligned - (uintptr_t)block < smallest_chunk) /* the part cut off in front must be a chunk */
            aligned += alignment;
        size_t front = aligned - (uintptr_t)block;
        size_t rest = size_of(chunk) - front, previous = chunk->previous;
        struct chunk *moved = (struct chunk *)(aligned - header_size);
        moved->size = rest | in_use;
        moved->previous = front;
        set_size_below((uint8_t *)moved + rest, rest);
        release((uint8_t *)chunk, front, previous);
        chunk = moved;
    }
    trim(chunk, chunk_size(size));
    return (uint8_t *)chunk + header_size;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size) {
    if (alignment < sizeof(void *) || (alignment & (alignment - 1)))
        return EINVAL;
    int before = errno;
    *block = memalign(alignment, size);
    errno = before;
    return *block ? 0 : ENOMEM;
}
