-- Every series of images that came to Orthanc as a whole goes on to the listener; its reports come back, and stay.
function OnStableSeries(series, tags, metadata)
  if tags['Modality'] ~= 'SR' then
    RestApiPost('/modalities/listener/store', DumpJson({Resources = {series}, Synchronous = false}))
  end
end
