// The file beside this one, byte by byte.
    .section .rodata
    .globl supervisor_page_begin
    .hidden supervisor_page_begin
supervisor_page_begin:
    .incbin "page.html"
    .globl supervisor_page_end
    .hidden supervisor_page_end
supervisor_page_end:
    .section .note.GNU-stack, "", @progbits
