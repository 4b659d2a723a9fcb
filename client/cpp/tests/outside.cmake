# Install what is in BUILD into a temporary directory, and build and run the project in SOURCE against it from there.
execute_process(COMMAND mktemp -d OUTPUT_VARIABLE place OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
file(COPY "${SOURCE}/" DESTINATION "${place}/source")

function(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed)
    if(failed)
        file(REMOVE_RECURSE "${place}")
        message(FATAL_ERROR "failed: ${ARGN}")
    endif()
endfunction()

run(${CMAKE_COMMAND} --install "${BUILD}" --prefix "${place}/prefix")
run(${CMAKE_COMMAND} -S "${place}/source" -B "${place}/build" "-DCMAKE_PREFIX_PATH=${place}/prefix"
        "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${FLAGS}")
run(${CMAKE_COMMAND} --build "${place}/build")
run("${place}/build/outside")
file(REMOVE_RECURSE "${place}")
