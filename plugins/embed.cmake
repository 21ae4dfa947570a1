# cmake -DFOLDER=... -DSOURCE=... -P embed.cmake: an assembler source that holds the kernels of a folder, and the table of them
# that cuda_driver.cpp reads: op, architecture, whether it is PTX, address.
file(GLOB files "${FOLDER}/*.cubin" "${FOLDER}/*.ptx")
list(SORT files COMPARE NATURAL)
set(data "")
set(table "")
set(i 0)
foreach(file IN LISTS files)
  get_filename_component(name "${file}" NAME)
  if(NOT name MATCHES "^([a-z_]+)\\.(sm|compute)_([0-9]+)\\.(cubin|ptx)$")
    message(FATAL_ERROR "${file}: not named <op>.<architecture>.cubin or .ptx")
  endif()
  set(is_ptx 0)
  if(CMAKE_MATCH_2 STREQUAL "compute")
    set(is_ptx 1)
  endif()
  string(APPEND data "op${i}: .asciz \"${CMAKE_MATCH_1}\"\n.balign 64\ncode${i}: .incbin \"${file}\"\n.byte 0\n")
  string(APPEND table ".quad op${i}, ${CMAKE_MATCH_3}, ${is_ptx}, code${i}\n")
  math(EXPR i "${i} + 1")
endforeach()
if(i EQUAL 0)
  message(FATAL_ERROR "${FOLDER}: no kernels")
endif()
file(WRITE "${SOURCE}" ".section .rodata\n${data}
.section .data.rel.ro, \"aw\"
.balign 8
.globl amsa_kernels
.hidden amsa_kernels
amsa_kernels:
${table}.quad 0, 0, 0, 0
.section .note.GNU-stack, \"\"
")
